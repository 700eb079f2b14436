//! `bits_soak`: serves random requests on several threads until the time is up, and compares every logit.

fn main() {}
