//! Builds the library for loom: sets this package's own cfg, and makes the cfgs of the other builds known
//! to the compiler.

fn main() {
    for cfg in ["paged_kv_loom", "paged_kv_shuttle", "paged_kv_census", "paged_kv_unfenced"] {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    println!("cargo::rustc-cfg=paged_kv_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
