//! What a finished run can be asked afterwards, from the checkpoints it keeps at the end of every
//! task. Nothing here prints or draws; the command line does.
//!
//! | question | answer |
//! |---|---|
//! | how far has the update moved the weights? | [`update_scale`] |
//! | how far have features moved, and does the head still tell tasks apart? | [`Trajectory`] |
//! | do new classes have larger logits? | [`TaskLogits`] |
//! | what would a head fitted anew reach? | [`Refit`] |
//! | what is stored, and what of it is trained? | [`parts`] |
//! | do later directions repeat earlier ones? | [`direction_residuals`] |
//! | do tasks change the same entries of the weights? | [`collisions`] |
//! | is there a barrier between two checkpoints? | [`straight_path`] |
//! | how far apart are the optima of single tasks? | [`task_optima`] |
//! | do singular values appear one after another? | [`staircase`] |

mod collisions;
mod logits;
mod optima;
mod parts;
mod path;
mod refit;
mod residual;
mod scale;
mod staircase;
mod trained;
mod trajectory;

pub use collisions::{Collisions, collision_rate, collisions, sparsity};
pub use logits::{LogitTable, TaskLogits, head_norms, task_logits};
pub use optima::{TaskOptima, task_optima};
pub use parts::{Part, parts};
pub use path::{PathPoint, straight_path};
pub use refit::Refit;
pub use residual::direction_residuals;
pub use scale::{SiteScale, UpdateScale, update_scale};
pub use staircase::{Staircase, StaircaseConfig, staircase};
pub use trained::TrainedRun;
pub use trajectory::{TaskState, Trajectory};
