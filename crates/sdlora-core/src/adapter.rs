//! The adapter of a whole model: a bank of directions per site, and the magnitudes they share.
//!
//! `ΔW_s = Σ_{k<t} α_k · A_k B_k / norm_k  +  α_t · N(A_t B_t)` for every adapted site s. Frozen:
//! the past factors and their norms. Trained: the current factors and all magnitudes.
//!
//! The structure changes only between steps, through two commands: [`Adapter::begin_task`] and
//! [`Adapter::finish_task`]. A new task means new parameters, hence a fresh optimiser state.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;

use crate::config::{CurrentForm, MagnitudeStart, PastNorm, SdLoraConfig};
use crate::direction::{Direction, HostFactors, PastDirections};
use crate::error::CoreError;
use crate::magnitude::{Magnitudes, group_of};
use crate::site::Site;
use crate::update::{ScaledFactors, Update};

/// The directions of one site.
#[derive(Module, Debug)]
pub struct SiteDirections {
    /// Of the finished tasks, frozen; absent in the first task.
    pub past: Option<PastDirections>,
    /// Of the running task, trained; absent between tasks.
    pub current: Option<Direction>,
    #[module(skip)]
    site: Site,
}

impl SiteDirections {
    /// Where these directions act.
    pub fn site(&self) -> &Site {
        &self.site
    }
}

/// Directions on every adapted site and the magnitudes that weigh them.
#[derive(Module, Debug)]
pub struct Adapter {
    /// The bank, in the order of the sites given to [`Adapter::new`].
    pub sites: Vec<SiteDirections>,
    /// The magnitudes; absent before the first task.
    pub magnitudes: Option<Magnitudes>,
    #[module(skip)]
    config: SdLoraConfig,
}

impl Adapter {
    /// An adapter without directions; it leaves the model as it is.
    ///
    /// # Errors
    ///
    /// [`CoreError::Setting`] when the settings do not hold together.
    pub fn new(config: SdLoraConfig, sites: &[Site]) -> Result<Self, CoreError> {
        config.check()?;
        Ok(Self {
            sites: sites
                .iter()
                .map(|site| SiteDirections {
                    past: None,
                    current: None,
                    site: site.clone(),
                })
                .collect(),
            magnitudes: None,
            config,
        })
    }

    /// The settings.
    pub fn config(&self) -> SdLoraConfig {
        self.config
    }

    /// Number of tasks that have a direction, the running one included.
    pub fn n_tasks(&self) -> usize {
        self.sites.first().map_or(0, |s| {
            s.past.as_ref().map_or(0, |p| p.ranks().len()) + usize::from(s.current.is_some())
        })
    }

    /// The rank of every direction, in task order, the running one last.
    pub fn ranks(&self) -> Vec<usize> {
        let Some(site) = self.sites.first() else {
            return Vec::new();
        };
        let mut ranks = site
            .past
            .as_ref()
            .map_or(Vec::new(), |p| p.ranks().to_vec());
        ranks.extend(site.current.as_ref().map(Direction::rank));
        ranks
    }

    /// Number of magnitudes per task: 1 when all sites share one, else the number of groups.
    pub fn n_groups(&self) -> usize {
        1 + self
            .sites
            .iter()
            .map(|s| self.group(&s.site))
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn group(&self, site: &Site) -> usize {
        group_of(self.config.sharing, site.group)
    }

    /// Starts a task: the running direction, if any, is finished; every site gets a new direction
    /// of the given rank; the magnitudes start as the settings say.
    ///
    /// # Errors
    ///
    /// [`CoreError::Rank`] when the rank does not fit a site; the adapter is then lost, so check
    /// with [`check_rank`](Self::check_rank) before where it matters.
    pub fn begin_task(
        self,
        rank: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Self, CoreError> {
        self.check_rank(rank)?;
        let directions = self
            .sites
            .iter()
            .map(|s| Direction::init(s.site.d_input, s.site.d_output, rank, rng, device))
            .collect();
        self.begin_task_with(directions, device)
    }

    /// [`begin_task`](Self::begin_task) with given directions, one per site in the order of the
    /// sites.
    ///
    /// # Errors
    ///
    /// [`CoreError::Rank`] when a rank does not fit its site.
    ///
    /// # Panics
    ///
    /// If the number of directions is not the number of sites.
    pub fn begin_task_with(
        mut self,
        directions: Vec<Direction>,
        device: &Device,
    ) -> Result<Self, CoreError> {
        assert_eq!(
            directions.len(),
            self.sites.len(),
            "one direction per adapted site"
        );
        if let Some(direction) = directions.first() {
            self.check_rank(direction.rank())?;
        }
        self = self.finish_task(device);

        let rows = match &self.magnitudes {
            None => vec![Vec::new(); self.n_groups()],
            Some(magnitudes) => magnitudes.to_rows(),
        };
        let rows: Vec<Vec<f64>> = rows
            .into_iter()
            .map(|mut row| {
                match self.config.start {
                    MagnitudeStart::Reset { value } => {
                        row.fill(value);
                        row.push(value);
                    }
                    MagnitudeStart::Keep { value } | MagnitudeStart::Carry { value } => {
                        row.push(value);
                    }
                }
                row
            })
            .collect();
        self.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        for (site, direction) in self.sites.iter_mut().zip(directions) {
            site.current = Some(direction);
        }
        Ok(self)
    }

    /// Starts a task that adds no direction: the running one, if any, is finished; the magnitudes
    /// start as the settings say.
    pub fn begin_task_without_direction(mut self, device: &Device) -> Self {
        self = self.finish_task(device);
        if let (Some(magnitudes), MagnitudeStart::Reset { value }) =
            (&self.magnitudes, self.config.start)
        {
            let mut rows = magnitudes.to_rows();
            rows.iter_mut().for_each(|row| row.fill(value));
            self.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        }
        self
    }

    /// Ends the running task: its directions are frozen beside the earlier ones, divided by the
    /// norm the settings name. Without a running task nothing happens.
    pub fn finish_task(mut self, device: &Device) -> Self {
        let current: Vec<Option<HostFactors>> = self
            .sites
            .iter()
            .map(|s| s.current.as_ref().map(Direction::to_host))
            .collect();
        let Some(norms) = self.norms(&current) else {
            return self;
        };

        if matches!(self.config.start, MagnitudeStart::Carry { .. })
            && let Some(magnitudes) = &self.magnitudes
        {
            let mut rows = magnitudes.to_rows();
            // All sites of a group have the same norm, so any of them gives it.
            let by_group: BTreeMap<usize, f64> = self
                .sites
                .iter()
                .zip(&norms)
                .map(|(s, &norm)| (self.group(&s.site), norm))
                .collect();
            for (group, norm) in by_group {
                if let Some(magnitude) = rows[group].last_mut() {
                    *magnitude *= norm;
                }
            }
            self.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        }

        for ((site, factors), norm) in self.sites.iter_mut().zip(current).zip(norms) {
            let Some(factors) = factors else { continue };
            let (mut all, mut all_norms, offsets) = match &site.past {
                None => (Vec::new(), Vec::new(), Vec::new()),
                Some(past) => (
                    past.to_host(),
                    past.inverse_norms().into_iter().map(invert).collect(),
                    past.offsets_host(),
                ),
            };
            all.push(factors);
            all_norms.push(norm);
            site.past = Some(
                PastDirections::from_host(&all, &all_norms, device).with_offsets(&offsets, device),
            );
            site.current = None;
        }
        self
    }

    /// The norm that divides each site's finished direction; `None` when no task runs.
    fn norms(&self, current: &[Option<HostFactors>]) -> Option<Vec<f64>> {
        let own: Vec<f64> = current
            .iter()
            .map(|factors| {
                factors.as_ref().map(|f| match self.config.past_norm {
                    PastNorm::FactorProduct => f.factor_product_norm(),
                    PastNorm::Frobenius | PastNorm::SharedFrobenius => f.frobenius_norm(),
                    PastNorm::Unit => 1.0,
                })
            })
            .collect::<Option<_>>()?;
        if own.is_empty() {
            return None;
        }
        let softened = match self.config.current {
            // The frozen direction is the one that was trained, so the same eps stays inside.
            CurrentForm::Normalised { eps } => own.iter().map(|n| n.hypot(eps)).collect(),
            CurrentForm::Raw => own,
        };
        if self.config.past_norm != PastNorm::SharedFrobenius {
            return Some(softened);
        }
        let mut groups: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        for (site, norm) in self.sites.iter().zip(&softened) {
            let (sum, count) = groups.entry(self.group(&site.site)).or_default();
            *sum += norm * norm;
            *count += 1.0;
        }
        Some(
            self.sites
                .iter()
                .map(|site| {
                    let (sum, count) = groups[&self.group(&site.site)];
                    (sum / count).sqrt()
                })
                .collect(),
        )
    }

    /// Checks that a rank fits every site.
    ///
    /// # Errors
    ///
    /// [`CoreError::Rank`] naming the first site it does not fit.
    pub fn check_rank(&self, rank: usize) -> Result<(), CoreError> {
        for SiteDirections { site, .. } in &self.sites {
            let max = site.d_input.min(site.d_output);
            if rank == 0 || rank > max {
                return Err(CoreError::Rank {
                    rank,
                    site: site.to_string(),
                    d_input: site.d_input,
                    d_output: site.d_output,
                    max,
                });
            }
        }
        Ok(())
    }

    /// The updates of all sites for one forward pass; gradients flow to the current factors and to
    /// every trainable magnitude.
    pub fn updates(&self) -> Updates {
        self.updates_where(|_| true)
    }

    /// As [`updates`](Self::updates), those of one group of sites only.
    pub fn group_updates(&self, group: usize) -> Updates {
        self.updates_where(|site| site.group == group)
    }

    fn updates_where(&self, is_wanted: impl Fn(&Site) -> bool) -> Updates {
        let mut updates = Updates::default();
        let Some(magnitudes) = &self.magnitudes else {
            return updates;
        };
        for bank in self.sites.iter().filter(|bank| is_wanted(&bank.site)) {
            let group = self.group(&bank.site);
            let mut terms = Vec::with_capacity(2);
            if let Some(past) = &bank.past {
                // Between tasks the last magnitude belongs to a finished direction too.
                let weights = match (magnitudes.past_of(group), bank.current.is_some()) {
                    (Some(past), true) => past,
                    (Some(past), false) => Tensor::cat(vec![past, magnitudes.current_of(group)], 1),
                    (None, _) => magnitudes.current_of(group),
                };
                let weights = weights + past.offsets.val();
                terms.push(ScaledFactors {
                    a: past.a.val() * weights.matmul(past.spread.val()),
                    b: past.b.val(),
                });
            }
            if let Some(current) = &bank.current {
                let scale = match self.config.current {
                    CurrentForm::Raw => magnitudes.current_of(group),
                    CurrentForm::Normalised { eps } => {
                        magnitudes.current_of(group)
                            / current.norm_squared().add_scalar(eps * eps).sqrt()
                    }
                };
                terms.push(ScaledFactors {
                    a: current.a.val() * scale,
                    b: current.b.val(),
                });
            }
            if !terms.is_empty() {
                updates.insert(&bank.site, Update::new(terms));
            }
        }
        updates
    }

    /// Stops or resumes the training of the magnitudes of finished tasks.
    pub fn with_past_magnitudes_trainable(mut self, trainable: bool) -> Self {
        self.magnitudes = self.magnitudes.map(|m| m.with_past_trainable(trainable));
        self
    }

    /// Stops or resumes the training of the running task's magnitude.
    pub fn with_current_magnitude_trainable(mut self, trainable: bool) -> Self {
        self.magnitudes = self.magnitudes.map(|m| m.with_current_trainable(trainable));
        self
    }

    /// The magnitudes, one row per group, one column per task; empty before the first task.
    pub fn magnitude_rows(&self) -> Vec<Vec<f64>> {
        self.magnitudes
            .as_ref()
            .map_or(Vec::new(), Magnitudes::to_rows)
    }

    /// An adapter of zeros with the structure of a saved one, to load a record into: the ranks of
    /// the finished tasks, and of the running one if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new) and [`check_rank`](Self::check_rank).
    pub fn with_structure(
        config: SdLoraConfig,
        sites: &[Site],
        past_ranks: &[usize],
        current_rank: Option<usize>,
        device: &Device,
    ) -> Result<Self, CoreError> {
        let mut adapter = Self::new(config, sites)?;
        for &rank in past_ranks.iter().chain(&current_rank) {
            adapter.check_rank(rank)?;
        }
        let zeros = |site: &Site, rank| HostFactors {
            a: vec![0.0; site.d_input * rank],
            b: vec![0.0; rank * site.d_output],
            rank,
        };
        for bank in &mut adapter.sites {
            let site = &bank.site;
            if !past_ranks.is_empty() {
                let factors: Vec<_> = past_ranks.iter().map(|&r| zeros(site, r)).collect();
                let norms = vec![0.0; factors.len()];
                bank.past = Some(PastDirections::from_host(&factors, &norms, device));
            }
            bank.current = current_rank.map(|rank| {
                let f = zeros(site, rank);
                Direction::from_factors(
                    burn::tensor::TensorData::new(f.a, [site.d_input, rank]),
                    burn::tensor::TensorData::new(f.b, [rank, site.d_output]),
                    device,
                )
            });
        }
        let n_tasks = past_ranks.len() + usize::from(current_rank.is_some());
        if n_tasks > 0 {
            let rows = vec![vec![0.0; n_tasks]; adapter.n_groups()];
            adapter.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        }
        Ok(adapter)
    }

    /// Freezes everything: factors and magnitudes.
    pub fn frozen(self) -> Self {
        struct Freeze;
        impl ModuleMapper for Freeze {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.set_require_grad(false)
            }
        }
        self.map(&mut Freeze)
    }
}

fn invert(inverse: f64) -> f64 {
    if inverse > 0.0 { 1.0 / inverse } else { 0.0 }
}

/// The updates of a model, by site: what a backbone needs to know of an adapter.
#[derive(Debug, Clone, Default)]
pub struct Updates {
    by_site: BTreeMap<Arc<str>, Update>,
}

impl Updates {
    /// Adds the update of a site, replacing an earlier one.
    pub fn insert(&mut self, site: &Site, update: Update) {
        self.by_site.insert(Arc::clone(&site.name), update);
    }

    /// The update of the site of that name, if it has one.
    pub fn get(&self, name: &str) -> Option<&Update> {
        self.by_site.get(name)
    }

    /// Whether no site has an update.
    pub fn is_empty(&self) -> bool {
        self.by_site.is_empty()
    }
}
