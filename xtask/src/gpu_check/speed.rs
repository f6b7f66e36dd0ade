//! The cases whose speed is measured, and the operations in them.

use super::args::Variant;

/// A model that is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    side: u64,
    patch: u64,
    width: u64,
    depth: u64,
}

/// The models of `crates/sdlora-train/benches/step.rs` that this command measures.
pub(super) const SHAPES: [Shape; 2] = [
    Shape {
        name: "vit-b",
        side: 224,
        patch: 16,
        width: 768,
        depth: 12,
    },
    Shape {
        name: "small",
        side: 32,
        patch: 4,
        width: 192,
        depth: 6,
    },
];

impl Shape {
    /// Floating-point operations for an image, two for a multiplication with its addition: the products of the frozen
    /// model alone. The backward pass has the products of the gradient of every input, and in attention two for one.
    pub(super) fn flop(self, is_training: bool) -> f64 {
        let patches = (self.side / self.patch).pow(2);
        let (n, d) = (patches + 1, self.width);
        let linear = self.depth * 12 * n * d * d;
        let attention = self.depth * 2 * n * n * d;
        let embedding = patches * 3 * self.patch.pow(2) * d;
        let products = match is_training {
            false => embedding + linear + attention,
            true => embedding + 2 * linear + 3 * attention,
        };
        2.0 * products as f64
    }
}

/// A measurement of speed.
#[derive(Debug, Clone)]
pub(super) struct Speed {
    pub(super) device: String,
    pub(super) variant: Variant,
    pub(super) model: &'static str,
    pub(super) mode: &'static str,
    pub(super) batch: usize,
    pub(super) precision: &'static str,
    pub(super) n_past: usize,
    /// Ours, or a way in which PyTorch computes.
    pub(super) by: &'static str,
}

impl Speed {
    /// The name of its result.
    pub(super) fn part(&self) -> String {
        [
            "speed",
            &self.device,
            self.variant.name(),
            self.model,
            self.mode,
            &self.batch.to_string(),
            self.precision,
            &self.n_past.to_string(),
            self.by,
        ]
        .join("/")
    }
}

/// The part of a speed in its pieces, as `report.rs` reads them.
pub(super) fn pieces(part: &str) -> Option<[&str; 8]> {
    let pieces: Vec<&str> = part.strip_prefix("speed/")?.split('/').collect();
    pieces.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_of_vit_b_are_those_that_are_known() {
        // 17.56 G multiplications of the products of ViT-B/16 at 224 pixels.
        let forward = SHAPES[0].flop(false);
        assert!((forward / 2e9 - 17.56).abs() < 0.01, "{forward}");
        let training = SHAPES[0].flop(true) / forward;
        assert!((2.0..2.1).contains(&training), "{training}");
    }

    #[test]
    fn a_part_is_read_as_it_is_written() {
        let speed = Speed {
            device: "cuda".into(),
            variant: Variant::Both,
            model: "vit-b",
            mode: "train",
            batch: 128,
            precision: "bf16",
            n_past: 20,
            by: "ours",
        };
        let pieces = pieces(&speed.part()).map(|pieces| pieces.join(" "));
        assert_eq!(pieces.unwrap(), "cuda both vit-b train 128 bf16 20 ours");
    }

    #[test]
    fn the_models_are_those_of_the_benchmark() {
        let step = crate::process::root().join("crates/sdlora-train/benches/step.rs");
        let text = std::fs::read_to_string(step).unwrap();
        for shape in SHAPES {
            let Shape {
                name,
                side,
                patch,
                width,
                depth,
            } = shape;
            let line =
                format!("\"{name}\" => VitConfig::standard({side}, {patch}, {width}, {depth},");
            assert!(text.contains(&line), "{line}");
        }
    }
}
