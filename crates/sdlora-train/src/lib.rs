//! Methods, trainer, evaluator and checkpoints for class-incremental learning
