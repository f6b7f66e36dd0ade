//! Adapts a frozen linear map to two tasks, one after the other.
//!
//! `cargo run --example adapt_any_module`

use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::{Adapter, ColumnUpdate, CoreError, Site, UpdateForm, Variant, adapted_linear};

#[expect(clippy::print_stdout, reason = "an example shows what happens")]
fn main() -> Result<(), CoreError> {
    let device = Device::default().autodiff();
    device.seed(1993);
    let mut rng = ChaCha8Rng::seed_from_u64(1993);
    let weight = Tensor::<2>::random([16, 8], Distribution::Default, &device);
    let site = Site {
        name: "my map".into(),
        group: 0,
        d_input: 16,
        d_output: 8,
    };
    let mut adapter = Adapter::new(Variant::Reference.config(), &[site])?;
    for task in 1..=2 {
        // Every task wants another matrix of rank 1 added to the map, so the second one has no use
        // for the first direction: its magnitude falls to 0.
        let a = Tensor::<2>::random([16, 1], Distribution::Normal(0.0, 0.5), &device);
        let b = Tensor::<2>::random([1, 8], Distribution::Normal(0.0, 0.5), &device);
        let wanted = weight.clone() + a.matmul(b);
        adapter = adapter.begin_task(2, &mut rng, &device)?;
        let mut optimizer = SgdConfig::new().init();
        for step in 0..=300 {
            let x = Tensor::<3>::random([1, 32, 16], Distribution::Normal(0.0, 1.0), &device);
            let updates = adapter.updates();
            let update = updates.get("my map").expect("the site of the adapter");
            let columns = [ColumnUpdate {
                first_column: 0,
                update,
            }];
            let y = adapted_linear(x.clone(), weight.clone(), None, &columns, UpdateForm::Auto);
            let loss = (y - x.matmul(wanted.clone().unsqueeze())).square().mean();
            if step % 100 == 0 {
                let magnitudes = adapter.magnitude_rows();
                println!(
                    "task {task}, step {step}: loss {:.4}, magnitudes {magnitudes:.2?}",
                    loss.clone().into_scalar::<f32>()
                );
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &adapter);
            adapter = optimizer.step(0.1, adapter, gradients);
        }
    }
    Ok(())
}
