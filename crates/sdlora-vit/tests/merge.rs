//! A merged backbone is the adapted one at the cost of a plain one.
#![allow(clippy::unwrap_used)]

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use sdlora_core::{Adapter, Updates, Variant};
use sdlora_testkit::{Tolerance, assert_close, test_device};
use sdlora_vit::{Pooling, Projection, Vit, VitConfig};

#[test]
fn merged_equals_unmerged_on_every_projection_and_pooling() {
    let device = test_device();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    for (class_token, pooling) in [
        (true, Pooling::ClassToken),
        (true, Pooling::Average),
        (false, Pooling::Average),
    ] {
        let mut config = VitConfig::standard(16, 8, 24, 2, 3);
        config.class_token = class_token;
        config.pooling = pooling;
        let vit = Vit::init(&config, &mut rng, &device).unwrap();
        let sites = config.sites(&Projection::ALL);
        let mut adapter = Adapter::new(Variant::Carry.config(), &sites).unwrap();
        for rank in [2, 3] {
            adapter = adapter.begin_task(rank, &mut rng, &device).unwrap();
            // A fresh up-projection is 0 and would prove nothing.
            for bank in &mut adapter.sites {
                let direction = bank.current.as_mut().unwrap();
                direction.b = Param::from_tensor(direction.b.val() + 0.3);
            }
        }
        let pixels: Vec<f32> = (0..3 * 3 * 256)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let images = Tensor::<4>::from_data(TensorData::new(pixels, [3, 3, 16, 16]), &device);
        let features = |vit: &Vit, updates: &Updates| -> Vec<f32> {
            vit.forward(images.clone(), updates)
                .into_data()
                .iter()
                .collect()
        };
        let updates = adapter.updates();
        let plain = features(&vit, &Updates::default());
        let unmerged = features(&vit, &updates);
        let change = plain
            .iter()
            .zip(&unmerged)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(change > 1e-2, "the adapter changes nothing: {change}");
        let merged = features(&vit.merged(&updates), &Updates::default());
        assert_close(
            merged.as_slice(),
            unmerged.as_slice(),
            Tolerance::RelMax(1e-5),
            "merged",
        );
    }
}
