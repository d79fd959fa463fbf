//! Finds out whether the terminal player is there to be embedded. `make player` puts it into `assets/player`; without
//! it everything builds, and reports name `kiln replay` instead of playing.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kiln_player)");
    // The folder above, which is always there: a path that is missing would rebuild the crate each time.
    println!("cargo::rerun-if-changed=assets");
    println!("cargo::rerun-if-changed=build.rs");
    let player = Path::new("assets/player");
    let files = ["asciinema-player.min.js", "asciinema-player.css", "LICENSE"];
    if files.iter().all(|file| player.join(file).is_file()) {
        println!("cargo::rustc-cfg=kiln_player");
    }
}
