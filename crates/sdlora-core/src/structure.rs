//! The structure of an adapter without its numbers: what has to be known before a record can be loaded.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::config::SdLoraConfig;
use crate::direction::{Direction, DirectionForm, HostFactors, PastDirections};
use crate::error::CoreError;
use crate::magnitude::Magnitudes;
use crate::site::Site;

/// The running direction of a site without its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirectionStructure {
    /// Its rank.
    pub rank: usize,
    /// What it is built of.
    #[serde(default)]
    pub form: DirectionForm,
}

/// The directions of a site without their numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteStructure {
    /// Ranks of the finished directions, in task order.
    pub past_ranks: Vec<usize>,
    /// The running direction, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<DirectionStructure>,
    /// Whether directions were merged into an accumulated update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_merged: bool,
}

/// An adapter without its numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AdapterStructure {
    /// Magnitudes of a group: one per task that has a direction.
    pub n_magnitudes: usize,
    /// The sites, in the order of [`Adapter::new`].
    pub sites: Vec<SiteStructure>,
}

impl AdapterStructure {
    /// The structure of an adapter whose sites all have directions of these ranks, plain ones.
    pub fn uniform(n_sites: usize, past_ranks: &[usize], current_rank: Option<usize>) -> Self {
        let site = SiteStructure {
            past_ranks: past_ranks.to_vec(),
            current: current_rank.map(|rank| DirectionStructure {
                rank,
                form: DirectionForm::default(),
            }),
            is_merged: false,
        };
        Self {
            n_magnitudes: past_ranks.len() + usize::from(current_rank.is_some()),
            sites: vec![site; n_sites],
        }
    }

    /// This structure without its finished directions.
    #[must_use]
    pub fn without_past(mut self) -> Self {
        for site in &mut self.sites {
            site.past_ranks.clear();
        }
        self
    }

    /// The numbers that an adapter of this structure holds at least, for the given sites; stops counting at the
    /// largest `usize`.
    pub fn n_numbers(&self, sites: &[Site]) -> usize {
        let of_site = |(structure, site): (&SiteStructure, &Site)| {
            let width = site.d_input.saturating_add(site.d_output);
            let past = structure.past_ranks.iter().fold(0usize, |sum, &rank| {
                sum.saturating_add(rank.saturating_mul(width))
            });
            let current = structure.current.as_ref().map_or(0, |current| {
                match current.form.chunks {
                    None => current.rank.saturating_mul(width),
                    // Its chunks are fewer numbers; that there is at least one per rank is enough here.
                    Some(_) => current.rank,
                }
            });
            let merged = match structure.is_merged {
                true => site.d_input.saturating_mul(site.d_output),
                false => 0,
            };
            past.saturating_add(current).saturating_add(merged)
        };
        let all = self.sites.iter().zip(sites).map(of_site);
        all.fold(self.n_magnitudes, usize::saturating_add)
    }
}

impl Adapter {
    /// The structure of this adapter.
    pub fn structure(&self) -> AdapterStructure {
        let sites = self.sites.iter().map(|bank| SiteStructure {
            past_ranks: bank
                .past
                .as_ref()
                .map_or(Vec::new(), |past| past.ranks().to_vec()),
            current: bank.current.as_ref().map(|current| DirectionStructure {
                rank: current.rank(),
                form: current.form(),
            }),
            is_merged: bank.merged.is_some(),
        });
        AdapterStructure {
            n_magnitudes: self.magnitudes.as_ref().map_or(0, Magnitudes::n_tasks),
            sites: sites.collect(),
        }
    }

    /// An adapter of zeros with the structure of a saved one, to load a record into.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), [`CoreError::Rank`] for a rank that does not fit its site, and
    /// [`CoreError::Structure`] for one of another number of sites, or whose numbers contradict each other.
    pub fn with_structure(
        config: SdLoraConfig,
        sites: &[Site],
        structure: &AdapterStructure,
        device: &Device,
    ) -> Result<Self, CoreError> {
        let mut adapter = Self::new(config, sites)?;
        if structure.sites.len() != sites.len() {
            return Err(CoreError::Structure {
                found: format!("directions of {} sites", structure.sites.len()),
                expected: format!("{}", sites.len()),
            });
        }
        let zeros = |site: &Site, rank| HostFactors {
            a: vec![0.0; site.d_input * rank],
            b: vec![0.0; rank * site.d_output],
            rank,
        };
        for (bank, structure) in adapter.sites.iter_mut().zip(&structure.sites) {
            let site = bank.site().clone();
            for &rank in &structure.past_ranks {
                site.check_rank(rank)?;
            }
            if !structure.past_ranks.is_empty() {
                let ranks = structure.past_ranks.iter();
                let factors: Vec<_> = ranks.map(|&r| zeros(&site, r)).collect();
                let norms = vec![0.0; factors.len()];
                bank.past = Some(PastDirections::from_host(&factors, &norms, device));
            }
            if let Some(DirectionStructure { rank, form }) = &structure.current {
                site.check_rank(*rank)?;
                form.check(*rank)?;
                bank.current = Some(Direction::zeros_as(*form, &site, *rank, device));
            }
            if structure.is_merged {
                let zeros = Tensor::from_data(
                    TensorData::zeros::<f32, _>([site.d_input, site.d_output]),
                    device,
                );
                bank.merged = Some(Param::from_tensor(zeros).set_require_grad(false));
            }
        }
        if structure.n_magnitudes > 0 {
            let rows = vec![vec![0.0; structure.n_magnitudes]; adapter.n_groups()];
            adapter.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        }
        Ok(adapter)
    }
}
