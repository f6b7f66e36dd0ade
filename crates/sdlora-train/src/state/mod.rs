//! What a method keeps from task to task, directions and head aside.
//!
//! A state is a list of named matrices, each a parameter of the model, and a few facts that say what they mean.
//! Counting, checkpoints, resuming, replicas, diagnostics and exports see the matrices and know no method. A
//! method sees them as a burn module of its own: [`MethodState::of`] takes one apart, [`MethodState::view`]
//! puts it together again.

mod definition;
pub(crate) mod file;

use std::any::Any;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};
use serde_json::Value;

use crate::heads::FloatsStored;
pub use definition::{Facts, MethodState, Role, SecondPass, SecondPassEntry};
use definition::{Matrix, MatrixShape, layout_of};
pub(crate) use definition::{StateShape, query};

impl MethodState {
    /// The parameters of a module under the paths that they have there. `role` says what each is counted as.
    ///
    /// # Panics
    ///
    /// If the module has a parameter that is no matrix.
    pub fn of<M: Module>(module: &M, role: impl Fn(&str) -> Role) -> Self {
        #[derive(Default)]
        struct Collect {
            path: Vec<String>,
            found: Vec<(String, Param<Tensor<2>>)>,
        }
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.path.push(name.into());
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let name = self.path.join(".");
                let matrix = (param as &dyn Any).downcast_ref::<Param<Tensor<2>>>();
                let matrix = matrix.unwrap_or_else(|| {
                    panic!("`{name}` has {D} dimensions; a method keeps matrices")
                });
                self.found.push((name, matrix.clone()));
            }
        }
        let mut collect = Collect::default();
        module.visit(&mut collect);
        let matrices = collect.found.into_iter().map(|(name, values)| Matrix {
            role: role(&name),
            values,
            name,
        });
        Self {
            matrices: matrices.collect(),
            ..Self::default()
        }
    }

    /// The module whose parameters this state has. `module` gives the structure; its own numbers are not read.
    ///
    /// # Panics
    ///
    /// If a parameter of the module is missing here or has another shape: the state is one of another method.
    pub fn view<M: Module>(&self, module: M) -> M {
        self.try_view(module)
            .unwrap_or_else(|problem| panic!("{problem}"))
    }

    fn try_view<M: Module>(&self, module: M) -> Result<M, String> {
        struct Fill<'a> {
            state: &'a MethodState,
            path: Vec<String>,
            problem: Option<String>,
        }
        impl ModuleMapper for Fill<'_> {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.path.push(name.into());
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.path.pop();
            }
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let (name, shape) = (self.path.join("."), param.lazy_shape());
                let found = self.state.get(&name);
                let fitting = found.filter(|found| found.lazy_shape() == shape);
                let fitting = fitting
                    .and_then(|found| (found as &dyn Any).downcast_ref::<Param<Tensor<D>>>());
                match fitting {
                    Some(found) => found.clone(),
                    None => {
                        let found = found.map(Param::lazy_shape);
                        self.problem.get_or_insert(format!(
                            "`{name}` has shape {found:?} where {shape:?} is needed"
                        ));
                        param
                    }
                }
            }
        }
        let mut fill = Fill {
            state: self,
            path: Vec::new(),
            problem: None,
        };
        let module = module.map(&mut fill);
        match fill.problem {
            None => Ok(module),
            Some(problem) => Err(problem),
        }
    }

    /// Checks that the matrices have the names and shapes of those of another state.
    ///
    /// # Errors
    ///
    /// A sentence without a full stop that names the first one that differs.
    pub(crate) fn fits(&self, other: &Self) -> Result<(), String> {
        let (own, others) = (self.shape().matrices, other.shape().matrices);
        for (own, other) in own.iter().zip(&others) {
            if (&own.name, own.shape) != (&other.name, other.shape) {
                return Err(format!(
                    "`{}` has shape {:?} where `{}` of shape {:?} is needed",
                    own.name, own.shape, other.name, other.shape
                ));
            }
        }
        match own.len() == others.len() {
            true => Ok(()),
            false => Err(format!(
                "the state of its method has {} matrices where {} are needed",
                own.len(),
                others.len()
            )),
        }
    }

    /// This state with a fact in addition.
    #[must_use]
    pub fn with_fact(mut self, name: &str, value: Value) -> Self {
        self.facts.insert(name.into(), value);
        self
    }

    /// The fact of that name.
    pub fn fact(&self, name: &str) -> Option<&Value> {
        self.facts.get(name)
    }

    /// This state, read by a second forward pass.
    #[must_use]
    pub fn with_second_pass(mut self, second_pass: Arc<dyn SecondPass>) -> Self {
        self.second_pass = Some(second_pass);
        self
    }

    /// The second forward pass that reads this state; absent for methods that need one pass.
    pub fn second_pass(&self) -> Option<&dyn SecondPass> {
        self.second_pass.as_deref()
    }

    /// The second pass as what it is; `None` where it is another, or none.
    pub fn layout<L: SecondPass>(&self) -> Option<&L> {
        let second_pass: &dyn Any = self.second_pass.as_deref()?;
        second_pass.downcast_ref()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }

    /// Names of the matrices, in the order of the module they come from.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.matrices.iter().map(|matrix| &matrix.name[..])
    }

    /// The matrix of that name.
    pub fn get(&self, name: &str) -> Option<&Param<Tensor<2>>> {
        let mut matrices = self.matrices.iter();
        let found = matrices.find(|matrix| matrix.name == name);
        found.map(|matrix| &matrix.values)
    }

    /// Columns of the matrix of that name; 0 where there is none.
    pub fn n_columns(&self, name: &str) -> usize {
        self.get(name).map_or(0, |values| {
            let [_, n_columns] = values.lazy_shape().dims();
            n_columns
        })
    }

    /// What is kept of classes and tasks whose images are gone.
    pub fn floats_stored(&self) -> FloatsStored {
        let mut stored = FloatsStored::default();
        for matrix in &self.matrices {
            let [n_rows, n_columns] = matrix.values.lazy_shape().dims();
            match matrix.role {
                Role::Parameter => {}
                Role::PerClass => {
                    stored.per_class += n_columns;
                    stored.total += n_rows * n_columns;
                }
                Role::Shared => {
                    stored.shared += n_rows * n_columns;
                    stored.total += n_rows * n_columns;
                }
            }
        }
        stored
    }

    pub(crate) fn shape(&self) -> StateShape {
        let matrices = self.matrices.iter().map(|matrix| MatrixShape {
            name: matrix.name.clone(),
            role: matrix.role,
            shape: matrix.values.lazy_shape().dims(),
        });
        StateShape {
            matrices: matrices.collect(),
            facts: self.facts.clone(),
            second_pass: self.second_pass().map(layout_of),
        }
    }

    /// Room for a state of this shape, to be filled by a record; `second_pass` reads the layout of the method's
    /// own second pass.
    pub(crate) fn zeros(
        shape: StateShape,
        second_pass: Option<SecondPassEntry>,
        device: &Device,
    ) -> Result<Self, String> {
        let second_pass = match (shape.second_pass, second_pass) {
            (None, _) => None,
            (Some(layout), Some(entry)) => Some(entry.read(&layout)?),
            (Some(_), None) => return Err("its method has no second pass".into()),
        };
        let matrices = shape.matrices.into_iter().map(|matrix| Matrix {
            values: room(matrix.shape, device),
            name: matrix.name,
            role: matrix.role,
        });
        Ok(Self {
            matrices: matrices.collect(),
            facts: shape.facts,
            second_pass,
        })
    }
}

impl StateShape {
    /// Numbers of all matrices.
    pub(crate) fn n_numbers(&self) -> usize {
        let sizes = self.matrices.iter().map(|matrix| {
            let [n_rows, n_columns] = matrix.shape;
            n_rows.saturating_mul(n_columns)
        });
        sizes.fold(0, usize::saturating_add)
    }
}

/// Room for a parameter, which takes memory only once it is read or set.
pub(crate) fn room<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, is_require_grad| {
            Tensor::zeros(shape, device).set_require_grad(is_require_grad)
        },
        device.clone(),
        true,
        shape.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    #[derive(Module, Debug)]
    struct Kept {
        trained: Param<Tensor<2>>,
        old: Vec<Param<Tensor<2>>>,
        means: Option<Param<Tensor<2>>>,
    }

    fn matrix(values: [[f32; 2]; 2]) -> Param<Tensor<2>> {
        Param::from_tensor(Tensor::from_data(values, &test_device()))
    }

    fn kept() -> Kept {
        Kept {
            trained: matrix([[1.0, 2.0], [3.0, 4.0]]),
            old: vec![matrix([[5.0, 6.0], [7.0, 8.0]]).set_require_grad(false)],
            means: Some(matrix([[9.0, 10.0], [11.0, 12.0]])),
        }
    }

    fn room_for(has_means: bool) -> Kept {
        let device = test_device();
        Kept {
            trained: room([2, 2], &device),
            old: vec![room([2, 2], &device)],
            means: has_means.then(|| room([2, 2], &device)),
        }
    }

    fn role(name: &str) -> Role {
        match name {
            "trained" => Role::Parameter,
            "means" => Role::PerClass,
            _ => Role::Shared,
        }
    }

    fn host(param: &Param<Tensor<2>>) -> Vec<f32> {
        param.val().into_data().iter().collect()
    }

    #[test]
    fn a_module_comes_back_with_its_numbers_ids_and_flags() {
        let before = kept();
        let state = MethodState::of(&before, role);
        assert_eq!(
            state.names().collect::<Vec<_>>(),
            ["trained", "old.0", "means"]
        );
        let after = state.view(room_for(true));
        for (a, b) in [
            (&before.trained, &after.trained),
            (&before.old[0], &after.old[0]),
        ] {
            assert_eq!((host(a), a.id), (host(b), b.id));
            assert_eq!(a.is_require_grad(), b.is_require_grad());
        }
        // A part that the structure lacks stays out of the view; one that the state lacks is named.
        assert!(state.view(room_for(false)).means.is_none());
        let short = MethodState::of(
            &Kept {
                means: None,
                ..kept()
            },
            role,
        );
        let problem = short.try_view(room_for(true)).unwrap_err();
        assert!(problem.contains("`means`"), "{problem}");
    }

    #[test]
    fn matrices_are_counted_by_their_role() {
        let stored = MethodState::of(&kept(), role).floats_stored();
        let expected = FloatsStored {
            per_class: 2,
            shared: 4,
            total: 8,
        };
        assert_eq!(stored, expected);
    }

    #[test]
    fn a_shape_makes_room_for_a_state_of_its_kind() {
        let state = MethodState::of(&kept(), role).with_fact("keeps", "used".into());
        let shape = state.shape();
        assert_eq!(shape.n_numbers(), 12);
        let json = serde_json::to_string(&shape).unwrap();
        let shape: StateShape = serde_json::from_str(&json).unwrap();
        let back = MethodState::zeros(shape, None, &test_device()).unwrap();
        assert_eq!(back.fact("keeps"), Some(&"used".into()));
        assert_eq!(back.shape(), state.shape());
        let back = back.load_record(state.clone().into_record());
        assert_eq!(host(back.get("means").unwrap()), [9.0, 10.0, 11.0, 12.0]);
    }
}
