//! A transformer that reads its keys and values through the block tables of `paged-kv`.
//!
//! Every logits vector that a token is taken from is compared, bit by bit, with that of [`reference`]:
//! other code, one sequence alone, keys and values in one piece. So a wrong table, slot or copy shows as a
//! number that differs. Both runs add the terms of each output in the same order, which makes equal bits
//! possible: see [`math`].
//!
//! | module | holds |
//! |---|---|
//! | [`dims`], [`weights`], [`seeded`] | the shape of a model, its weights, weights from a seed |
//! | [`packed`], [`quant`], [`gguf`] | packed weights, quantized weights, and the file that has them |
//! | [`wide`], [`math`], [`panel`], [`rope`], [`attention`] | the kernels |
//! | [`kv`] | the memory behind the blocks, shared by threads |
//! | [`model`], [`batch`] | the forward pass of the rows of a step |
//! | [`reference`] | the same without blocks |
//! | [`sampling`], [`drafts`] | the next token, and guesses of further ones |
//! | [`request`], [`workload`], [`outcome`] | requests, their expected results, the comparison |
//! | [`server`], [`engine`] | shared caches and memory; a scheduler that works in steps |
//! | [`mode`], [`storm`] | ways of serving, with one engine and with several threads |
#![forbid(unsafe_code)]

pub mod attention;
pub mod batch;
pub mod dims;
pub mod drafts;
pub mod engine;
pub mod gguf;
pub mod kv;
pub mod math;
pub mod mode;
pub mod model;
pub mod outcome;
pub mod packed;
pub mod panel;
pub mod quant;
pub mod reference;
pub mod request;
pub mod rope;
pub mod sampling;
pub mod seeded;
pub mod server;
pub mod storm;
pub mod weights;
pub mod wide;
pub mod workload;
