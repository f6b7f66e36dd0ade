//! Bounds of the machine: beyond any checkpoint or data set, and far below what fills a memory.

/// Most instructions of a program. A ViT-L with the state of AdamW takes 40,000; the training half of
/// CIFAR-100 names and labels 50,000 images twice.
pub const MAX_INSTRUCTIONS: usize = 4 << 20;
/// Most values on the stack, and most marks.
pub const MAX_STACK: usize = 1 << 20;
/// Most values in all; a ViT-L with the state of AdamW takes 20,000.
pub const MAX_VALUES: usize = 1 << 20;
