//! Means of the classes of a task and how their images lie around them.

use crate::linalg::Symmetric;

/// Means of the classes of a task, and the distances of their images to them.
pub(in crate::heads) struct ClassMoments {
    /// `[n_new, d_model]`.
    pub(in crate::heads) means: Vec<f32>,
    pub(in crate::heads) d_model: usize,
    /// For every class `[n_images, d_model]`.
    deviations: Vec<Vec<f64>>,
}

impl ClassMoments {
    /// Of features `[n_images, d]` with labels, the first of which in this task is `first_label`.
    pub(in crate::heads) fn of(
        features: &[f32],
        d: usize,
        labels: &[usize],
        first_label: usize,
    ) -> Self {
        let end = labels.iter().max().map_or(0, |&label| label + 1);
        let mut images: Vec<Vec<f64>> = vec![Vec::new(); end.saturating_sub(first_label)];
        for (row, &label) in features.chunks_exact(d.max(1)).zip(labels) {
            if let Some(class) = label.checked_sub(first_label) {
                images[class].extend(row.iter().map(|&x| f64::from(x)));
            }
        }
        let mut means = Vec::with_capacity(images.len() * d);
        for rows in &mut images {
            let n = (rows.len() / d.max(1)).max(1) as f64;
            let mut mean = vec![0.0; d];
            for row in rows.chunks_exact(d.max(1)) {
                mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n);
            }
            for row in rows.chunks_exact_mut(d.max(1)) {
                row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
            }
            means.extend(mean.iter().map(|&m| m as f32));
        }
        Self {
            means,
            d_model: d,
            deviations: images,
        }
    }

    pub(in crate::heads) fn n_classes(&self) -> usize {
        self.deviations.len()
    }

    /// Distances of the images of a class to its mean `[n_images, d_model]`; empty of a class without any.
    pub(in crate::heads) fn deviations(&self, class: usize) -> &[f64] {
        &self.deviations[class]
    }

    /// Images less one; 0 of a class with one image or none.
    pub(in crate::heads) fn degrees(&self, class: usize) -> f64 {
        let n = self.deviations[class].len() / self.d_model.max(1);
        n.saturating_sub(1) as f64
    }

    /// Unbiased, and zeros of a class with one image.
    pub(in crate::heads) fn covariance(&self, class: usize) -> Symmetric {
        let mut sum = Symmetric::zeros(self.d_model);
        sum.add_gram(&self.deviations[class]);
        let mut covariance = Symmetric::zeros(self.d_model);
        covariance.add(1.0 / self.degrees(class).max(1.0), &sum);
        covariance
    }

    /// The diagonal of [`covariance`](Self::covariance).
    pub(in crate::heads) fn variances(&self, class: usize) -> impl Iterator<Item = f32> {
        let mut sums = vec![0.0f64; self.d_model];
        for row in self.deviations[class].chunks_exact(self.d_model.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        let degrees = self.degrees(class).max(1.0);
        sums.into_iter().map(move |sum| (sum / degrees) as f32)
    }
}
