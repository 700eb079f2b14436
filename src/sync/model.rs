//! What do the names of [`sync`](super) mean under the model checker?
