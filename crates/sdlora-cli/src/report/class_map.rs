//! A map of the classes: their mean features, seen along the two directions in which they differ most.

use super::classes::{Classes, clipped, task_of};
use super::page::figure;
use super::svg::{Plot, Scale, escape};

/// Fewest classes of a map.
const FEWEST: usize = 3;
/// Most classes of a map: the dots of more would hide each other.
const MOST: usize = 2000;
/// Classes among which the nearest pairs are looked for: their number grows with the square.
const MOST_COMPARED: usize = 400;
/// Rounds of the iteration that finds the two directions. Where they are not told apart by then, any two of the plane
/// show the same.
const N_ROUNDS: usize = 60;

/// Points along the two directions of largest variance.
#[derive(Debug, PartialEq)]
struct Principal {
    points: Vec<[f64; 2]>,
    /// Share of the variance along each, fractions.
    shares: [f64; 2],
}

/// The figure; `None` with fewer than three classes that have images, or without spread.
pub fn class_map(classes: &Classes<'_>) -> Option<String> {
    let n = classes.names.len();
    let d = classes.means.len().checked_div(n)?;
    let is_known = |label: &usize| {
        let row = &classes.means[label * d..(label + 1) * d];
        row.iter().any(|&x| x != 0.0) && row.iter().all(|x| x.is_finite())
    };
    let labels: Vec<usize> = (0..n).filter(is_known).collect();
    if !(FEWEST..=MOST).contains(&labels.len()) {
        return None;
    }
    let rows: Vec<Vec<f64>> = labels
        .iter()
        .map(|&label| {
            let row = &classes.means[label * d..(label + 1) * d];
            row.iter().map(|&x| f64::from(x)).collect()
        })
        .collect();
    let nearest = nearest_pairs(&rows);
    let map = principal(rows)?;
    let range = |axis: usize| {
        let values = map.points.iter().map(|point| point[axis]);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let room = 0.05 * (high - low).max(1e-9);
        Scale::exact(low - room, high + room, 5)
    };
    let title = |axis: usize| {
        let name = ["first", "second"][axis];
        format!(
            "{name} direction, {:.0} % of the variance",
            100.0 * map.shares[axis]
        )
    };
    let name = |at: usize| clipped(&classes.names[labels[at]]);
    let pairs: Vec<String> = nearest
        .iter()
        .map(|&(a, b)| format!("{} and {}", name(a), name(b)))
        .collect();
    let mut says = format!(
        "Map of the mean features of {} classes; its plane holds {:.0} % of their variance",
        labels.len(),
        100.0 * (map.shares[0] + map.shares[1])
    );
    if !pairs.is_empty() {
        says.push_str(&format!("; nearest to each other are {}", pairs.join(", ")));
    }
    let mut plot = Plot::new(&says, (&title(0), range(0)), (&title(1), range(1)));
    let n_tasks = classes.new_labels.len();
    for (at, (&label, &[x, y])) in labels.iter().zip(&map.points).enumerate() {
        let task = task_of(classes.new_labels, label);
        let style = super::charts::ramp(task.unwrap_or(0), n_tasks);
        let tip = match task {
            Some(task) => format!("{}, task {task}", name(at)),
            None => name(at),
        };
        plot.mark("ramp", &style, (x, y), &tip);
    }
    let legend = match n_tasks {
        0 | 1 => String::new(),
        _ => format!(
            r#"<div class="legend">classes of task 0<span class="ramp-scale"></span>of task {}</div>"#,
            n_tasks - 1
        ),
    };
    let closest = match pairs.is_empty() {
        true => String::new(),
        false => format!(
            "<p class=\"note\">Nearest to each other: {}.</p>",
            escape(&pairs.join("; "))
        ),
    };
    Some(figure(
        "Map of the classes",
        "Mean feature of every class's test images, along the two directions in which they differ most. Point at a dot \
         for its class.",
        &format!("{legend}{}{closest}", plot.finish()),
    ))
}

/// The three pairs of rows that are nearest to each other; none among too many.
fn nearest_pairs(rows: &[Vec<f64>]) -> Vec<(usize, usize)> {
    if rows.len() > MOST_COMPARED {
        return Vec::new();
    }
    let distance =
        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum() };
    let mut pairs: Vec<(f64, usize, usize)> = (0..rows.len())
        .flat_map(|i| (i + 1..rows.len()).map(move |j| (i, j)))
        .map(|(i, j)| (distance(&rows[i], &rows[j]), i, j))
        .collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    pairs.into_iter().take(3).map(|(_, i, j)| (i, j)).collect()
}

/// Principal components by iteration on two vectors at a time; `None` where all rows are equal.
fn principal(mut rows: Vec<Vec<f64>>) -> Option<Principal> {
    let (n, d) = (rows.len(), rows.first()?.len());
    for column in 0..d {
        let mean = rows.iter().map(|row| row[column]).sum::<f64>() / n as f64;
        rows.iter_mut().for_each(|row| row[column] -= mean);
    }
    let total: f64 = rows.iter().flatten().map(|x| x * x).sum();
    if !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    // Any start that no direction is at right angles to; the same one every time.
    let mut directions = [1.0, 2.0].map(|k: f64| -> Vec<f64> {
        (0..d)
            .map(|i| (k * (i as f64 + 1.0)).sin() + 0.1 * k)
            .collect()
    });
    for _ in 0..N_ROUNDS {
        for k in 0..2 {
            let mut next = vec![0.0; d];
            for row in &rows {
                let along = dot(row, &directions[k]);
                next.iter_mut()
                    .zip(row)
                    .for_each(|(next, x)| *next += along * x);
            }
            if k == 1 {
                let along = dot(&next, &directions[0]);
                let first = directions[0].clone();
                next.iter_mut()
                    .zip(&first)
                    .for_each(|(next, x)| *next -= along * x);
            }
            let length = dot(&next, &next).sqrt();
            // Rows along one line have no second direction.
            let scale = if length > 1e-12 * total {
                1.0 / length
            } else {
                0.0
            };
            next.iter_mut().for_each(|x| *x *= scale);
            directions[k] = next;
        }
    }
    for direction in &mut directions {
        // The sign is free: the largest entry is positive.
        let largest = direction
            .iter()
            .copied()
            .fold(0.0f64, |a, b| if b.abs() > a.abs() { b } else { a });
        if largest < 0.0 {
            direction.iter_mut().for_each(|x| *x = -*x);
        }
    }
    let points: Vec<[f64; 2]> = rows
        .iter()
        .map(|row| [dot(row, &directions[0]), dot(row, &directions[1])])
        .collect();
    let share = |axis: usize| points.iter().map(|point| point[axis].powi(2)).sum::<f64>() / total;
    Some(Principal {
        shares: [share(0), share(1)],
        points,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_metrics::Confusion;

    #[test]
    fn the_directions_are_those_of_largest_variance() {
        // Spread 3 along (1, 1)/√2, 1 along (1, −1)/√2, 0.1 along the third axis, around (5, 5, 5).
        let h = 0.5f64.sqrt();
        let rows: Vec<Vec<f64>> = [
            (3.0, 0.0, 0.1),
            (-3.0, 0.0, 0.1),
            (0.0, 1.0, -0.1),
            (0.0, -1.0, -0.1),
        ]
        .iter()
        .map(|&(a, b, c)| vec![5.0 + h * (a + b), 5.0 + h * (a - b), 5.0 + c])
        .collect();
        let map = principal(rows).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(close(map.points[0][0].abs(), 3.0), "{map:?}");
        assert!(close(map.points[0][0], -map.points[1][0]));
        assert!(
            close(map.points[2][1].abs(), 1.0) && close(map.points[2][0], 0.0),
            "{map:?}"
        );
        assert!(close(map.shares[0], 18.0 / 20.04) && close(map.shares[1], 2.0 / 20.04));
    }

    #[test]
    fn rows_on_a_line_and_rows_that_are_equal() {
        let line = principal(vec![vec![1.0, 1.0], vec![2.0, 2.0], vec![4.0, 4.0]]).unwrap();
        assert!(
            (line.shares[0] - 1.0).abs() < 1e-9 && line.shares[1].abs() < 1e-9,
            "{line:?}"
        );
        assert!(line.points.iter().flatten().all(|x| x.is_finite()));
        assert_eq!(principal(vec![vec![1.0, 2.0]; 3]), None);
    }

    #[test]
    fn the_map_says_who_is_near_and_leaves_classes_without_images_out() {
        let names: Vec<String> = ["a", "b<", "c", "none"].map(str::to_owned).into();
        let confusion = Confusion::of(&[], &[], 4).unwrap();
        let means = [0.0, 1.0, 0.0, 1.1, 9.0, 1.0, 0.0, 0.0];
        let classes = |means| Classes {
            names: &names,
            new_labels: &[0..2, 2..4],
            confusion: &confusion,
            means,
            mistakes: &[],
        };
        let markup = class_map(&classes(&means)).unwrap();
        assert_eq!(markup.matches("<circle").count(), 3);
        assert!(
            markup.contains("aria-label=\"Map of the mean features of 3 classes"),
            "{markup}"
        );
        assert!(
            markup.contains("nearest to each other are a and b&lt;"),
            "{markup}"
        );
        assert!(!markup.contains("NaN"));
        assert_eq!(class_map(&classes(&[0.0; 8])), None);
        assert_eq!(class_map(&classes(&[])), None);
    }
}
