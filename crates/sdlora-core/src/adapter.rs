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
use crate::update::{GatedFactors, KeptRows, ScaledFactors, Update};

/// The directions of one site.
#[derive(Module, Debug)]
pub struct SiteDirections {
    /// Of the finished tasks, frozen; absent in the first task.
    pub past: Option<PastDirections>,
    /// Of the running task, trained; absent between tasks.
    pub current: Option<Direction>,
    /// The accumulated update `[d_input, d_output]` of directions that were merged, frozen; a step costs the same
    /// whatever its history ([`Adapter::merge_current`]).
    pub merged: Option<Param<Tensor<2>>>,
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
                    merged: None,
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
        self.magnitudes.as_ref().map_or(0, Magnitudes::n_tasks)
    }

    /// Whether a direction is running on some site.
    pub fn is_running(&self) -> bool {
        self.sites.iter().any(|bank| bank.current.is_some())
    }

    /// The rank of every direction of the first site, in task order, the running one last. Those of other sites
    /// differ where a method wants it; [`structure`](Self::structure) has them all.
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
        for (bank, direction) in self.sites.iter().zip(&directions) {
            bank.site.check_rank(direction.rank())?;
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
        self.sites
            .iter()
            .try_for_each(|bank| bank.site.check_rank(rank))
    }

    /// The updates of all sites for one forward pass; gradients flow to the current factors and to
    /// every trainable magnitude. Directions with dropout are what they are outside training.
    pub fn updates(&self) -> Updates {
        self.updates_where(|_| true, unmasked)
    }

    /// As [`updates`](Self::updates), those of one group of sites only.
    pub fn group_updates(&self, group: usize) -> Updates {
        self.updates_where(|site| site.group == group, unmasked)
    }

    /// As [`updates`](Self::updates), under masks that are drawn anew for the directions with dropout.
    pub fn masked_updates(&self, rng: &mut impl Rng) -> Updates {
        self.updates_where(|_| true, |current| (current.masked_factors(rng), 1.0))
    }

    /// Whether [`masked_updates`](Self::masked_updates) are others than [`updates`](Self::updates).
    pub fn has_masks(&self) -> bool {
        let mut current = self.sites.iter().filter_map(|bank| bank.current.as_ref());
        current.any(|current| current.form().dropout.is_some())
    }

    fn updates_where(
        &self,
        is_wanted: impl Fn(&Site) -> bool,
        mut factors: impl FnMut(&Direction) -> ((Tensor<2>, Tensor<2>), f64),
    ) -> Updates {
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
                let ((a, b), mean) = factors(current);
                let scale = match mean == 1.0 {
                    true => scale,
                    false => scale.mul_scalar(mean),
                };
                terms.push(ScaledFactors { a: a * scale, b });
            }
            let merged = bank.merged.as_ref().map(Param::val);
            if let Some(update) = Update::of(terms, merged) {
                updates.insert(&bank.site, update);
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

    /// Ends the running direction of every site that has one by adding it, at its magnitude, to the accumulated
    /// update of the site: the function stays what it was. The magnitudes stay, for a direction that is begun in
    /// its place.
    pub fn merge_current(mut self) -> Self {
        let updates = self.updates();
        for bank in &mut self.sites {
            // What an update has of earlier tasks stays there.
            let current = match (&bank.current, updates.get(&bank.site.name)) {
                (Some(_), Some(update)) => update.terms().last(),
                _ => None,
            };
            let Some(term) = current else { continue };
            let product = term.a.clone().detach().matmul(term.b.clone().detach());
            let merged = match &bank.merged {
                None => product,
                Some(merged) => merged.val() + product,
            };
            bank.merged = Some(Param::from_tensor(merged.detach()).set_require_grad(false));
            bank.current = None;
        }
        self
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

/// The factors outside training, and by how much they count.
fn unmasked(current: &Direction) -> ((Tensor<2>, Tensor<2>), f64) {
    (current.factors(), current.mean_mask())
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

    /// Adds a pair that counts differently for every image to the update of the site of that name.
    pub fn add_gated(&mut self, name: &str, gated: GatedFactors) {
        let update = match self.by_site.remove(name) {
            None => Update::of_images(gated),
            Some(update) => update.with_gated(gated),
        };
        self.by_site.insert(Arc::from(name), update);
    }

    /// Lets gradients through these rows of the batch only, at the site of that name; nothing where it has no update.
    pub fn keep_rows(&mut self, name: &str, kept_rows: KeptRows) {
        if let Some(update) = self.by_site.remove(name) {
            let update = update.with_kept_rows(kept_rows);
            self.by_site.insert(Arc::from(name), update);
        }
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
