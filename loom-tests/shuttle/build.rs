//! Builds the library for shuttle: its own cfg is set for this package, and those of the other builds are
//! known to the compiler.

fn main() {
    for cfg in ["paged_kv_loom", "paged_kv_shuttle", "paged_kv_census", "paged_kv_unfenced"] {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    println!("cargo::rustc-cfg=paged_kv_shuttle");
    println!("cargo::rerun-if-changed=build.rs");
}
