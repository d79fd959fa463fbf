//! The files every page shares.

use super::SiteFile;

/// Whether this build can play recordings in a page.
pub(super) const HAS_PLAYER: bool = cfg!(kiln_player);

const SHARED: &[(&str, &[u8])] = &[
    ("assets/kiln.css", include_bytes!("../../assets/kiln.css")),
    ("assets/kiln.js", include_bytes!("../../assets/kiln.js")),
    // Without it GitHub's pages would take the site through Jekyll.
    (".nojekyll", b""),
];

#[cfg(kiln_player)]
const PLAYER: &[(&str, &[u8])] = &[
    ("assets/player.js", include_bytes!("../../assets/player/asciinema-player.min.js")),
    ("assets/player.css", include_bytes!("../../assets/player/asciinema-player.css")),
    ("assets/player-LICENSE.txt", include_bytes!("../../assets/player/LICENSE")),
];

#[cfg(not(kiln_player))]
const PLAYER: &[(&str, &[u8])] = &[];

pub(super) fn files() -> impl Iterator<Item = SiteFile> {
    let all = SHARED.iter().chain(PLAYER);
    all.map(|(path, bytes)| SiteFile { path: (*path).to_owned(), bytes: bytes.to_vec() })
}
