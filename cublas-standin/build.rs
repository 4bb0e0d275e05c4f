//! Names the shared library so that a program that asks for libcublas.so is satisfied with it.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcublas.so");
    println!("cargo:rerun-if-changed=build.rs");
}
