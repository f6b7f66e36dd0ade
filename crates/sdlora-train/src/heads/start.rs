//! What the columns of new classes are before their first step.
//!
//! The start is not a detail: a column moves by the learning rate and a loss over the classes of a
//! task never shortens those of another one, so what is drawn long stays long. Every method has the
//! start of its published code, see [`Method::column_start`](crate::methods::Method::column_start);
//! the option `start` of any head takes another.

use burn::tensor::{Device, TensorData};
use rand::{Rng, RngExt};

use super::TrainedHead;
use super::normal::standard_normal;

/// A distribution of new columns and their biases; the option `start` of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnStart {
    /// `kaiming`: weights from U(±√(3 / d_model)), that is Kaiming uniform of a linear gain, biases
    /// 0. The published code of SD-LoRA and of PILOT.
    Kaiming,
    /// `torch`: weights and biases from U(±1 / √d_model), the default of `torch.nn.Linear`. The
    /// published code of CODA-Prompt, InfLoRA and RanPAC (which has no biases).
    Torch,
    /// `normal`: weights from N(0, 0.02²), biases 0, the default of timm (which cuts it at ±2, that
    /// is 100 standard deviations). The published code of SLCA and HiDe-Prompt.
    Normal,
    /// `zeros`: all 0. The published code of L2P and DualPrompt.
    Zeros,
}

/// Standard deviation of [`ColumnStart::Normal`].
const STANDARD_DEVIATION: f64 = 0.02;

impl ColumnStart {
    /// Every start.
    pub const ALL: [Self; 4] = [Self::Kaiming, Self::Torch, Self::Normal, Self::Zeros];

    /// Its name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kaiming => "kaiming",
            Self::Torch => "torch",
            Self::Normal => "normal",
            Self::Zeros => "zeros",
        }
    }

    /// The start of that name.
    pub(super) fn parse(value: &toml::Value) -> Result<Self, String> {
        let named = |start: &Self| value.as_str() == Some(start.name());
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            format!("the head's `start` is {value}: give it kaiming, torch, normal or zeros")
        })
    }

    /// Columns of `n_classes` new classes, with a bias each.
    pub fn draw(
        self,
        d_model: usize,
        n_classes: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> TrainedHead {
        let n = d_model * n_classes;
        let mut bias = vec![0.0f32; n_classes];
        let weight: Vec<f32> = match self {
            Self::Kaiming => return TrainedHead::draw(d_model, n_classes, rng, device),
            Self::Torch => {
                let bound = 1.0 / (d_model as f32).sqrt();
                let weight = (0..n).map(|_| rng.random_range(-bound..bound)).collect();
                bias.fill_with(|| rng.random_range(-bound..bound));
                weight
            }
            Self::Normal => standard_normal(rng, n)
                .into_iter()
                .map(|v| (STANDARD_DEVIATION * v) as f32)
                .collect(),
            Self::Zeros => vec![0.0; n],
        };
        TrainedHead::from_data(
            TensorData::new(weight, [d_model, n_classes]),
            TensorData::new(bias, [n_classes]),
            device,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use sdlora_testkit::test_device;

    const D: usize = 100;
    const N: usize = 200;

    fn drawn(start: ColumnStart) -> (Vec<f32>, Vec<f32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let head = start.draw(D, N, &mut rng, &test_device());
        (head.rows().0, head.bias_host().unwrap())
    }

    /// Largest magnitude and root of the mean square.
    fn sizes(values: &[f32]) -> (f64, f64) {
        let squares: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let largest = values.iter().map(|v| v.abs()).fold(0.0, f32::max);
        (f64::from(largest), (squares / values.len() as f64).sqrt())
    }

    #[test]
    fn every_start_has_its_width_and_its_biases() {
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.03;
        // A uniform distribution of half-width b has the standard deviation b / √3.
        for (start, half_width, deviation, has_bias) in [
            (ColumnStart::Kaiming, Some(0.03f64.sqrt()), 0.1, false),
            (ColumnStart::Torch, Some(0.1), 0.1 / 3f64.sqrt(), true),
            (ColumnStart::Normal, None, 0.02, false),
        ] {
            let (weight, bias) = drawn(start);
            let (largest, root) = sizes(&weight);
            assert!(near(root, deviation), "{start:?}: {root}");
            if let Some(half_width) = half_width {
                assert!(near(largest, half_width) && largest <= half_width + 1e-6);
            }
            let (largest, root) = sizes(&bias);
            match has_bias {
                true => assert!(largest <= 0.1 && (root / deviation - 1.0).abs() < 0.2),
                false => assert_eq!(largest, 0.0, "{start:?}"),
            }
        }
        let (weight, bias) = drawn(ColumnStart::Zeros);
        assert_eq!((sizes(&weight).0, sizes(&bias).0), (0.0, 0.0));
    }

    #[test]
    fn the_start_of_sd_lora_draws_what_it_always_drew() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let expected = TrainedHead::draw(D, N, &mut rng, &test_device());
        assert_eq!(drawn(ColumnStart::Kaiming).0, expected.rows().0);
    }

    #[test]
    fn a_start_is_found_by_its_name_alone() {
        for start in ColumnStart::ALL {
            assert_eq!(ColumnStart::parse(&start.name().into()), Ok(start));
        }
        let error = ColumnStart::parse(&"Torch".into()).unwrap_err();
        assert!(
            ColumnStart::ALL.iter().all(|s| error.contains(s.name())),
            "{error}"
        );
    }
}
