//! The methods: what grows, what is trained and how a classifier comes about.
//!
//! A method is one file and one line in [`METHODS`]; a family of methods shares a file. Help text,
//! configuration check and contract tests read the same slice.

mod adapter_spec;
mod aper;
mod beamlora;
mod chain;
mod clora;
mod coda_prompt;
mod duallora;
mod dualprompt;
mod e2lora;
mod finetune;
mod hide_prompt;
mod inflora;
mod input_subspaces;
mod joint;
mod l2p;
mod label_paths;
mod linear;
mod lora;
mod lora_dropout;
mod lora_per_task;
mod lora_recycle;
mod method;
mod ncm;
mod nlora;
mod olora;
mod prilora;
mod prolora;
mod ranpac;
mod sdlora;
mod sdlora_merge;
mod sdlora_relative;
mod settings;
mod sgrpo;
mod simplecil;
mod slca;
mod sora;
mod tspmo;

use crate::error::TrainError;
pub(crate) use crate::options::check_number;
pub use crate::step_context::StepContext;
pub use adapter_spec::{AdapterSpec, RankStep, Ranks};
pub use method::{LossBatch, LossOver, Method, MethodEntry, TaskContext, TaskImages};
pub(crate) use settings::{
    check_block_list, check_blocks, check_counts, check_projections, check_slot, default_rank,
    default_spread, parse, query_and_value,
};

/// Every method there is.
pub const METHODS: &[MethodEntry] = &[
    sdlora::SDLORA,
    sdlora::RR,
    sdlora::KD,
    sdlora::FIRST,
    sdlora::SINGLE,
    sdlora::FIXED_MAGNITUDE,
    sdlora_relative::ENTRY,
    sdlora_merge::ENTRY,
    lora::ENTRY,
    lora_per_task::ENTRY,
    olora::ENTRY,
    nlora::ENTRY,
    clora::ENTRY,
    chain::RACLORA,
    chain::XGBLORA,
    sora::ENTRY,
    beamlora::ENTRY,
    prolora::ENTRY,
    prilora::ENTRY,
    lora_dropout::ENTRY,
    lora_recycle::ENTRY,
    inflora::ENTRY,
    duallora::ENTRY,
    e2lora::ENTRY,
    tspmo::ENTRY,
    sgrpo::ENTRY,
    l2p::ENTRY,
    dualprompt::ENTRY,
    coda_prompt::ENTRY,
    hide_prompt::ENTRY,
    finetune::ENTRY,
    slca::ENTRY,
    ranpac::ENTRY,
    linear::ENTRY,
    ncm::ENTRY,
    simplecil::ENTRY,
    aper::ENTRY,
    joint::ENTRY,
];

/// The method of that name among some.
///
/// # Errors
///
/// [`TrainError::Setting`] for an unknown name.
pub fn find<'a>(methods: &'a [MethodEntry], name: &str) -> Result<&'a MethodEntry, TrainError> {
    methods.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<_> = methods.iter().map(|m| m.name).collect();
        TrainError::setting("method.name", name, format!("one of {}", known.join(", ")))
    })
}

/// Builds the method of that name with its options.
///
/// # Errors
///
/// [`TrainError::Setting`] for an unknown name or option.
pub fn build(name: &str, options: &toml::Table) -> Result<Box<dyn Method>, TrainError> {
    (find(METHODS, name)?.build)(options)
}
