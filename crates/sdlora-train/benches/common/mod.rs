//! The model that the benchmarks of a step share.

use burn::module::Param;
use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sdlora_core::{Adapter, Direction, Variant};
use sdlora_train::{Model, TrainedHead};
use sdlora_vit::{Projection, Vit, VitConfig};

pub const N_CLASSES: usize = 10;
#[allow(dead_code, reason = "one of the benchmarks counts with it")]
pub const RANK: usize = 10;

/// A model with `n_past` frozen directions and a running one on query and value.
pub fn model(config: &VitConfig, n_past: usize, device: &Device) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(n_past as u64);
    let vit = Vit::init(config, &mut rng, device).unwrap();
    let sites = config.sites(&[Projection::Query, Projection::Value]);
    let mut adapter = Adapter::new(Variant::Reference.config(), &sites).unwrap();
    for _ in 0..=n_past {
        adapter = adapter.begin_task(RANK, &mut rng, device).unwrap();
        for bank in &mut adapter.sites {
            // A trained up-projection is not 0.
            let direction: &mut Direction = bank.current.as_mut().unwrap();
            let b = direction.b.val() + rng.random_range(0.01..0.02);
            direction.b = Param::from_tensor(b.detach());
        }
    }
    let mut model = Model::new(vit, adapter);
    model.head.trained = Some(TrainedHead::draw(
        config.d_model,
        N_CLASSES,
        &mut rng,
        device,
    ));
    model
}
