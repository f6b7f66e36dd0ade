//! Epochs, optimiser and schedule, of the first task and of the others.

use toml::{Table, Value};

use super::keys::{Keys, integer, missing, wrong};
use super::names::simple;
use crate::UsageError;

/// Schedules of the first task and of the others; `None` is a constant rate.
type Schedules = (Option<Table>, Option<Table>);

impl Keys {
    /// Epochs and optimiser of the first task and of the others. A key of which only one spelling is
    /// given holds for all tasks. A method that takes no steps may have no epoch.
    pub(super) fn training(
        &mut self,
        table: &mut Table,
        takes_steps: bool,
    ) -> Result<(), UsageError> {
        let mut tuned = self.count("tuned_epoch")?;
        if tuned == Some(0) && !takes_steps {
            self.notes.push(
                "`tuned_epoch` is left out: it is 0, and the method takes no steps".to_owned(),
            );
            tuned = Some(1);
        }
        let (first_epochs, epochs) = either(self.count("init_epoch")?, self.count("epochs")?)
            .or(tuned.map(|n| (n, n)))
            .ok_or_else(|| missing("epochs"))?;
        if tuned.is_some_and(|tuned| tuned != epochs || tuned != first_epochs) {
            return Err(UsageError(format!(
                "`tuned_epoch` is {}, and `init_epoch` or `epochs` says otherwise: keep the one that \
                 holds",
                tuned.unwrap_or_default()
            )));
        }
        let (first_lr, lr) = either(self.number("init_lr")?, self.number("lrate")?)
            .ok_or_else(|| missing("lrate"))?;
        let decay = either(
            self.number("init_weight_decay")?,
            self.number("weight_decay")?,
        );
        let (first_decay, weight_decay) = decay.unwrap_or_else(|| {
            self.notes
                .push("`weight_decay` is not given: there is none".into());
            (0.0, 0.0)
        });
        let rule = self.rule()?;
        let schedules = self.schedules(first_epochs, epochs)?;
        let optimizer = |lr: f64, decay: f64, schedule: &Option<Table>| {
            let mut optimizer = rule.clone();
            optimizer.insert("lr".into(), Value::Float(lr));
            optimizer.insert("weight_decay".into(), Value::Float(decay));
            if let Some(schedule) = schedule {
                optimizer.insert("schedule".into(), Value::Table(schedule.clone()));
            }
            optimizer
        };
        let first = optimizer(first_lr, first_decay, &schedules.0);
        let others = optimizer(lr, weight_decay, &schedules.1);
        table.insert("n_epochs".into(), integer(epochs)?);
        let mut first_task = Table::new();
        if first_epochs != epochs {
            first_task.insert("n_epochs".into(), integer(first_epochs)?);
        }
        if first != others {
            first_task.insert("optimizer".into(), Value::Table(first));
        }
        table.insert("optimizer".into(), Value::Table(others));
        if !first_task.is_empty() {
            table.insert("first_task".into(), Value::Table(first_task));
        }
        Ok(())
    }

    /// The keys of the optimiser that are the same in every task.
    fn rule(&mut self) -> Result<Table, UsageError> {
        let typed = self.text_of(&["optimizer", "optim"])?;
        let name = typed.clone().map(|name| name.to_lowercase());
        let rule = match name.as_deref() {
            None => {
                self.notes
                    .push("`optimizer` is not given: it is sgd with momentum 0.9".into());
                "sgd"
            }
            Some(rule @ ("sgd" | "adam" | "adamw")) => rule,
            Some(_) => {
                let typed = typed.unwrap_or_default();
                return Err(wrong("optimizer", &typed, "sgd, adam or adamw"));
            }
        };
        let mut table = Table::from_iter([("rule".to_owned(), rule.into())]);
        if let Some(momentum) = self.number("momentum")? {
            match rule {
                "sgd" => {
                    table.insert("momentum".into(), Value::Float(momentum));
                }
                _ => self.notes.push(format!(
                    "`momentum` is left out: `{rule}` has its own moments"
                )),
            }
        }
        Ok(table)
    }

    fn schedules(&mut self, first_epochs: usize, epochs: usize) -> Result<Schedules, UsageError> {
        let typed = self.text("scheduler")?;
        let milestones = either(self.counts("init_milestones")?, self.counts("milestones")?);
        let gammas = either(self.number("init_lr_decay")?, self.number("lrate_decay")?);
        let min_lr = self.number("min_lr")?;
        let name = typed.as_deref().map(simple);
        let has_steps = milestones.is_some() && gammas.is_some();
        let shape = match name.as_deref() {
            None if has_steps => "multi-step",
            None | Some("constant" | "none") => "constant",
            Some("steplr" | "step" | "multistep" | "multisteplr") => "multi-step",
            Some("cosine" | "cosinelr" | "coslr" | "cosineannealinglr") => "cosine",
            Some(_) => {
                let typed = typed.unwrap_or_default();
                return Err(wrong("scheduler", &typed, "constant, steplr or cosine"));
            }
        };
        if shape != "multi-step" && (milestones.is_some() || gammas.is_some()) {
            self.notes.push(format!(
                "milestones and their decay are left out: the schedule is {shape}"
            ));
        }
        if shape != "cosine" && min_lr.is_some() {
            self.notes
                .push(format!("`min_lr` is left out: the schedule is {shape}"));
        }
        match shape {
            "cosine" => {
                self.notes.push(
                    "the cosine falls with every step here, with every epoch in PILOT".into(),
                );
                let eta_min = Value::Float(min_lr.unwrap_or(0.0));
                let cosine = Table::from_iter([
                    ("shape".to_owned(), "cosine".into()),
                    ("eta_min".to_owned(), eta_min),
                ]);
                Ok((Some(cosine.clone()), Some(cosine)))
            }
            "multi-step" => {
                let (first, others) = milestones.ok_or_else(|| missing("milestones"))?;
                let (first_gamma, gamma) = gammas.ok_or_else(|| missing("lrate_decay"))?;
                Ok((
                    steps(&first, first_gamma, first_epochs)?,
                    steps(&others, gamma, epochs)?,
                ))
            }
            _ => Ok((None, None)),
        }
    }
}

/// Values of the first task and of the others, where at least one is given.
fn either<T: Clone>(first: Option<T>, others: Option<T>) -> Option<(T, T)> {
    match (first, others) {
        (Some(first), Some(others)) => Some((first, others)),
        (Some(one), None) | (None, Some(one)) => Some((one.clone(), one)),
        (None, None) => None,
    }
}

/// The epochs at which the rate falls; those after the end of the task never come.
fn steps(milestones: &[usize], gamma: f64, n_epochs: usize) -> Result<Option<Table>, UsageError> {
    let reached: Vec<Value> = milestones
        .iter()
        .filter(|&&epoch| epoch < n_epochs)
        .map(|&epoch| integer(epoch))
        .collect::<Result<_, _>>()?;
    Ok((!reached.is_empty()).then(|| {
        Table::from_iter([
            ("shape".to_owned(), "multi-step".into()),
            ("milestones".to_owned(), Value::Array(reached)),
            ("gamma".to_owned(), Value::Float(gamma)),
        ])
    }))
}
