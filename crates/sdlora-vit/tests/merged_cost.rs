//! A merged model costs what the plain backbone costs: it forms no update and no weight.
//!
//! The cost is the number and the size of the tensors made, counted by the allocator; this test is
//! alone in its program because it counts for all threads.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::{Adapter, Updates, Variant};
use sdlora_testkit::allocator::{Counting, large_blocks};
use sdlora_testkit::test_device;
use sdlora_vit::{Projection, Vit, VitConfig};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Number and bytes of the tensors a forward pass makes: the least of several, because every thread of the pool
/// makes buffers of its own when its first work comes, and keeps them.
fn cost(vit: &Vit, images: &Tensor<4>, updates: &dyn Fn() -> Updates) -> (usize, usize) {
    let passes = (0..8).map(|_| {
        let before = large_blocks();
        vit.forward(images.clone(), &updates());
        let after = large_blocks();
        (after.0 - before.0, after.1 - before.1)
    });
    passes.min().unwrap()
}

#[test]
fn a_merged_model_makes_the_tensors_of_the_plain_backbone_and_no_others() {
    let device = test_device();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let config = VitConfig::standard(32, 8, 48, 3, 4);
    let vit = Vit::init(&config, &mut rng, &device).unwrap();
    let sites = config.sites(&[Projection::Query, Projection::Value]);
    let mut adapter = Adapter::new(Variant::Reference.config(), &sites).unwrap();
    for _ in 0..5 {
        adapter = adapter.begin_task(4, &mut rng, &device).unwrap();
    }
    let images = Tensor::ones([4, 3, 32, 32], &device);

    let none: &dyn Fn() -> Updates = &Updates::default;
    let plain = cost(&vit, &images, none);
    let adapted = cost(&vit, &images, &|| adapter.updates());
    let merged = cost(&vit.clone().merged(&adapter.updates()), &images, none);
    assert!(plain.0 > 0, "nothing was counted");
    assert_eq!(merged, plain, "tensors and bytes, merged against plain");
    assert!(adapted > plain, "an update was formed unseen: {adapted:?}");
}
