//! The operators, each with the shape of what it gives.
//!
//! All of them panic where shapes or element types do not fit.

use crate::graph::{Attribute, Graph};
use crate::value::{Dim, Element, Value, broadcast};

/// Filter of a resize, widened where it shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle over two pixels.
    Linear,
    /// Cubic convolution over four pixels, with `a = -0.5`.
    Cubic,
}

/// A resize of one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resize {
    /// The axis.
    pub axis: usize,
    /// The filter.
    pub filter: Filter,
}

/// Parameter of the cubic, Pillow's and torchvision's.
const CUBIC: f32 = -0.5;

impl Graph {
    fn same(&mut self, operator: &str, x: &Value) -> Value {
        self.node(operator, &[Some(x)], Vec::new(), x.element, x.shape.clone())
    }

    fn binary(&mut self, operator: &str, a: &Value, b: &Value, element: Element) -> Value {
        assert_eq!(
            a.element, b.element,
            "{operator} of {} and {}",
            a.name, b.name
        );
        let shape = broadcast(&a.shape, &b.shape);
        self.node(operator, &[Some(a), Some(b)], Vec::new(), element, shape)
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Add", a, b, a.element)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Sub", a, b, a.element)
    }

    /// `a · b`, number by number.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Mul", a, b, a.element)
    }

    /// `a / b`; of whole numbers the part before the point.
    pub fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Div", a, b, a.element)
    }

    /// The smaller one.
    pub fn min(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Min", a, b, a.element)
    }

    /// The larger one.
    pub fn max(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Max", a, b, a.element)
    }

    /// `a > b`.
    pub fn greater(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Greater", a, b, Element::Bool)
    }

    /// `a` where the condition holds, else `b`; all of one shape.
    pub fn choose(&mut self, condition: &Value, a: &Value, b: &Value) -> Value {
        assert_eq!(condition.element, Element::Bool);
        assert_eq!(
            a,
            &Value {
                name: a.name.clone(),
                ..b.clone()
            },
            "two of one kind"
        );
        let inputs = [Some(condition), Some(a), Some(b)];
        self.node("Where", &inputs, Vec::new(), a.element, a.shape.clone())
    }

    /// `max(0, x)`.
    pub fn relu(&mut self, x: &Value) -> Value {
        self.same("Relu", x)
    }

    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid(&mut self, x: &Value) -> Value {
        self.same("Sigmoid", x)
    }

    /// The hyperbolic tangent.
    pub fn tanh(&mut self, x: &Value) -> Value {
        self.same("Tanh", x)
    }

    /// The error function.
    pub fn erf(&mut self, x: &Value) -> Value {
        self.same("Erf", x)
    }

    /// The magnitude.
    pub fn abs(&mut self, x: &Value) -> Value {
        self.same("Abs", x)
    }

    /// The whole number below.
    pub fn floor(&mut self, x: &Value) -> Value {
        self.same("Floor", x)
    }

    /// The nearest whole number, halves to the even one.
    pub fn round(&mut self, x: &Value) -> Value {
        self.same("Round", x)
    }

    /// `exp(x)` over the sum of the last axis.
    pub fn softmax(&mut self, x: &Value) -> Value {
        let settings = vec![("axis", Attribute::Int(-1))];
        self.node("Softmax", &[Some(x)], settings, x.element, x.shape.clone())
    }

    /// The same numbers in another element type.
    pub fn cast(&mut self, x: &Value, to: Element) -> Value {
        let settings = vec![("to", Attribute::Int(to.number().into()))];
        self.node("Cast", &[Some(x)], settings, to, x.shape.clone())
    }

    /// The product of the last two axes; those before are spread.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        let (rest_a, [rows, inner_a]) = matrix(a);
        let (rest_b, [inner_b, columns]) = matrix(b);
        assert!(inner_a.fits(inner_b), "{:?} times {:?}", a.shape, b.shape);
        let mut shape = broadcast(rest_a, rest_b);
        shape.extend([rows, columns]);
        let inputs = [Some(a), Some(b)];
        self.node("MatMul", &inputs, Vec::new(), a.element, shape)
    }

    /// `x · rowsᵀ + bias` of `x: [n, d]`, `rows: [m, d]` and `bias: [m]`.
    pub fn rows(&mut self, x: &Value, rows: &Value, bias: Option<&Value>) -> Value {
        let (_, [n, d]) = matrix(x);
        let (_, [m, d_rows]) = matrix(rows);
        assert!(d.fits(d_rows), "{:?} on {:?}", rows.shape, x.shape);
        let settings = vec![("transB", Attribute::Int(1))];
        let inputs = [Some(x), Some(rows), bias];
        self.node("Gemm", &inputs, settings, x.element, vec![n, m])
    }

    /// Patches of `x: [n, channels, side, side]` times `kernel: [d, channels, patch, patch]`:
    /// `[n, d, side / patch, side / patch]`.
    pub fn patches(&mut self, x: &Value, kernel: &Value, bias: Option<&Value>) -> Value {
        let &[n, channels, height, width] = x.shape.as_slice() else {
            panic!("{} is no batch of images: {:?}", x.name, x.shape);
        };
        let &[d, of_channels, patch, _] = kernel.shape.as_slice() else {
            panic!("{} is no kernel: {:?}", kernel.name, kernel.shape);
        };
        assert!(
            channels.fits(of_channels),
            "{:?} on {:?}",
            kernel.shape,
            x.shape
        );
        let step = patch.known().unwrap_or(1);
        let over = |side: Dim| {
            side.known()
                .map_or(Dim::Any, |side| Dim::Known(side / step))
        };
        let steps = || Attribute::Ints(vec![step as i64; 2]);
        let settings = vec![("kernel_shape", steps()), ("strides", steps())];
        let shape = vec![n, d, over(height), over(width)];
        let inputs = [Some(x), Some(kernel), bias];
        self.node("Conv", &inputs, settings, x.element, shape)
    }

    /// The same numbers in another shape: 0 is the length that the axis has, -1 what is left.
    pub fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let axis = |(i, &n): (usize, &i64)| match n {
            0 => x.shape[i],
            -1 => Dim::Any,
            n => Dim::Known(n as usize),
        };
        let mut found: Vec<Dim> = shape.iter().enumerate().map(axis).collect();
        // Axes that are copied cancel out of what is left.
        let others = |all: &[Dim], skip: &[bool]| {
            let kept = all.iter().zip(skip).filter(|(_, skip)| !**skip);
            kept.map(|(dim, _)| dim.known()).product::<Option<usize>>()
        };
        let copied: Vec<bool> = shape.iter().map(|&n| n == 0).collect();
        let skip = |n: usize| (0..n).map(|i| copied.get(i).copied().unwrap_or(false));
        let before = others(&x.shape, &skip(x.shape.len()).collect::<Vec<_>>());
        let rest: Vec<bool> = shape.iter().map(|&n| n <= 0).collect();
        let after = others(&found, &rest);
        let left = shape.iter().position(|&n| n == -1);
        match (before, after, left) {
            (Some(before), Some(after), Some(left)) => {
                assert!(before.is_multiple_of(after), "{:?} as {shape:?}", x.shape);
                found[left] = Dim::Known(before / after);
            }
            (Some(before), Some(after), None) => {
                assert_eq!(before, after, "{:?} as {shape:?}", x.shape);
            }
            _ => {}
        }
        let list = self.list(shape);
        let inputs = [Some(x), Some(&list)];
        self.node("Reshape", &inputs, Vec::new(), x.element, found)
    }

    /// The axes in another order.
    pub fn transpose(&mut self, x: &Value, order: &[usize]) -> Value {
        assert_eq!(order.len(), x.shape.len(), "an order of {:?}", x.shape);
        let shape = order.iter().map(|&i| x.shape[i]).collect();
        let order = order.iter().map(|&i| i as i64).collect();
        let settings = vec![("perm", Attribute::Ints(order))];
        self.node("Transpose", &[Some(x)], settings, x.element, shape)
    }

    /// One behind the other along an axis.
    pub fn concat(&mut self, parts: &[&Value], axis: usize) -> Value {
        let mut shape = parts[0].shape.clone();
        for part in &parts[1..] {
            for (i, (dim, of_part)) in shape.iter_mut().zip(&part.shape).enumerate() {
                match i == axis {
                    true => {
                        let both = dim.known().zip(of_part.known());
                        *dim = both.map_or(Dim::Any, |(a, b)| Dim::Known(a + b));
                    }
                    false => assert!(
                        dim.fits(*of_part),
                        "{:?} beside {:?}",
                        part.shape,
                        parts[0].shape
                    ),
                }
            }
        }
        let inputs: Vec<Option<&Value>> = parts.iter().map(|&part| Some(part)).collect();
        let settings = vec![("axis", Attribute::Int(axis as i64))];
        self.node("Concat", &inputs, settings, parts[0].element, shape)
    }

    /// `x: [1, ..]` once for every entry of the first axis of `like`.
    pub fn repeat(&mut self, x: &Value, like: &Value) -> Value {
        let n = self.length(like, 0);
        let ones = self.list(&vec![1; x.shape.len() - 1]);
        let target = self.concat(&[&n, &ones], 0);
        let mut shape = x.shape.clone();
        shape[0] = like.shape[0];
        let inputs = [Some(x), Some(&target)];
        self.node("Expand", &inputs, Vec::new(), x.element, shape)
    }

    /// The length of an axis, `[1]` of 64 bits.
    pub fn length(&mut self, x: &Value, axis: usize) -> Value {
        let settings = vec![
            ("start", Attribute::Int(axis as i64)),
            ("end", Attribute::Int(axis as i64 + 1)),
        ];
        let shape = vec![Dim::Known(1)];
        self.node("Shape", &[Some(x)], settings, Element::I64, shape)
    }

    /// `x[start..start + len]` along an axis; `start: [1]`.
    pub fn part(&mut self, x: &Value, axis: usize, start: &Value, len: usize) -> Value {
        let len_value = self.list(&[len as i64]);
        let end = self.add(start, &len_value);
        let axes = self.list(&[axis as i64]);
        let mut shape = x.shape.clone();
        assert!(
            shape[axis].known().is_none_or(|n| len <= n),
            "{len} of {shape:?}"
        );
        shape[axis] = Dim::Known(len);
        let inputs = [Some(x), Some(start), Some(&end), Some(&axes)];
        self.node("Slice", &inputs, Vec::new(), x.element, shape)
    }

    /// The mean over an axis, which goes.
    pub fn mean(&mut self, x: &Value, axis: usize) -> Value {
        let axes = self.list(&[axis as i64]);
        let settings = vec![("keepdims", Attribute::Int(0))];
        let mut shape = x.shape.clone();
        shape.remove(axis);
        let inputs = [Some(x), Some(&axes)];
        self.node("ReduceMean", &inputs, settings, x.element, shape)
    }

    /// The last axis brought to mean 0 and variance 1, then scaled and shifted.
    pub fn layer_norm(&mut self, x: &Value, scale: &Value, shift: &Value, eps: f32) -> Value {
        let width = x.shape.last().copied().unwrap_or(Dim::Any);
        assert!(
            scale.shape == [width] && shift.shape == [width],
            "{:?} on {:?}",
            scale.shape,
            x.shape
        );
        let settings = vec![
            ("axis", Attribute::Int(-1)),
            ("epsilon", Attribute::Float(eps)),
        ];
        let inputs = [Some(x), Some(scale), Some(shift)];
        self.node(
            "LayerNormalization",
            &inputs,
            settings,
            x.element,
            x.shape.clone(),
        )
    }

    /// Without axes of length 1.
    pub fn squeeze(&mut self, x: &Value, axes: &[i64]) -> Value {
        let list = self.list(axes);
        let keep = |(i, _): &(usize, &Dim)| !axes.contains(&(*i as i64));
        let shape = x.shape.iter().enumerate().filter(keep).map(|(_, &dim)| dim);
        let shape = shape.collect();
        let inputs = [Some(x), Some(&list)];
        self.node("Squeeze", &inputs, Vec::new(), x.element, shape)
    }

    /// With an axis of length 1 more.
    pub fn unsqueeze(&mut self, x: &Value, axis: usize) -> Value {
        let list = self.list(&[axis as i64]);
        let mut shape = x.shape.clone();
        shape.insert(axis, Dim::Known(1));
        let inputs = [Some(x), Some(&list)];
        self.node("Unsqueeze", &inputs, Vec::new(), x.element, shape)
    }

    /// `0, 1, … n - 1` for a number without axes.
    pub fn count(&mut self, n: &Value) -> Value {
        assert!(n.shape.is_empty(), "{:?}", n.shape);
        let (zero, one) = (self.number(0.0), self.number(1.0));
        let inputs = [Some(&zero), Some(n), Some(&one)];
        self.node("Range", &inputs, Vec::new(), Element::F32, vec![Dim::Any])
    }

    /// One axis brought to `size: [1]`, as Pillow does it: the filter widens where it shrinks, and pixels beyond the
    /// edge have no weight.
    pub fn resize(&mut self, x: &Value, how: Resize, size: &Value, known: Option<usize>) -> Value {
        let mode = match how.filter {
            Filter::Linear => "linear",
            Filter::Cubic => "cubic",
        };
        let mut settings = vec![
            ("antialias", Attribute::Int(1)),
            ("axes", Attribute::Ints(vec![how.axis as i64])),
            (
                "coordinate_transformation_mode",
                Attribute::Text("half_pixel"),
            ),
            ("exclude_outside", Attribute::Int(1)),
            ("mode", Attribute::Text(mode)),
        ];
        if how.filter == Filter::Cubic {
            settings.push(("cubic_coeff_a", Attribute::Float(CUBIC)));
        }
        let mut shape = x.shape.clone();
        shape[how.axis] = known.map_or(Dim::Any, Dim::Known);
        let inputs = [Some(x), None, None, Some(size)];
        self.node("Resize", &inputs, settings, x.element, shape)
    }
}

/// The last two axes, and those before.
fn matrix(x: &Value) -> (&[Dim], [Dim; 2]) {
    let (rest, last) = x.shape.split_last_chunk::<2>().unwrap_or_else(|| {
        panic!("{} is no matrix: {:?}", x.name, x.shape);
    });
    (rest, *last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: Dim = Dim::named("batch");

    fn graph() -> (Graph, Value) {
        let mut graph = Graph::new("test");
        let x = graph.input(
            "x",
            Element::F32,
            &[BATCH, Dim::Known(3), Dim::Known(8), Dim::Known(8)],
        );
        (graph, x)
    }

    #[test]
    fn shapes_follow_from_what_is_known() {
        let (mut graph, x) = graph();
        let kernel = graph.tensor("k", &[5, 3, 4, 4], &[0.0; 240]);
        let patches = graph.patches(&x, &kernel, None);
        assert_eq!(
            patches.shape,
            [BATCH, Dim::Known(5), Dim::Known(2), Dim::Known(2)]
        );
        let rows = graph.reshape(&patches, &[0, 0, -1]);
        let tokens = graph.transpose(&rows, &[0, 2, 1]);
        assert_eq!(tokens.shape, [BATCH, Dim::Known(4), Dim::Known(5)]);
        let token = graph.tensor("t", &[1, 1, 5], &[0.0; 5]);
        let token = graph.repeat(&token, &tokens);
        let all = graph.concat(&[&token, &tokens], 1);
        assert_eq!(all.shape, [BATCH, Dim::Known(5), Dim::Known(5)]);
        let mean = graph.mean(&all, 1);
        let rows = graph.tensor("rows", &[7, 5], &[0.0; 35]);
        assert_eq!(graph.rows(&mean, &rows, None).shape, [BATCH, Dim::Known(7)]);
        let start = graph.list(&[1]);
        assert_eq!(graph.part(&all, 1, &start, 4).shape[1], Dim::Known(4));
        let size = graph.length(&x, 2);
        let how = Resize {
            axis: 3,
            filter: Filter::Cubic,
        };
        assert_eq!(graph.resize(&x, how, &size, None).shape[3], Dim::Any);
        assert_eq!(graph.operators().last(), Some(&"Resize"));
    }

    #[test]
    #[should_panic(expected = "times")]
    fn a_product_of_widths_that_differ_is_a_mistake_of_who_builds_it() {
        let (mut graph, x) = graph();
        let w = graph.tensor("w", &[7, 2], &[0.0; 14]);
        graph.matmul(&x, &w);
    }

    #[test]
    #[should_panic(expected = "as [0, 7]")]
    fn a_shape_for_another_number_of_values_is_one_too() {
        let (mut graph, x) = graph();
        graph.reshape(&x, &[0, 7]);
    }
}
