//! Building the folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_history::site;
use kiln_model::outcome::Outcome;

use crate::fixture::{HOSTILE, Place, failed, id};

/// Every file below a folder with its bytes.
pub(crate) fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                all.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn only_new_runs_are_written_and_old_ones_stay_without_their_recordings() {
    let place = Place::new();
    place.record("20260101-000000-0001", "smoke", "a", &[Outcome::Passed]);
    let built = site::build(&place.runs(), None, &place.site()).unwrap();
    assert_eq!((built.written.len(), built.unchanged), (1, 0));
    fs::remove_dir_all(place.runs()).unwrap();
    place.record("20260102-000000-0002", "smoke", "b", &[failed()]);
    let built = site::build(&place.runs(), None, &place.site()).unwrap();
    assert_eq!((built.written.len(), built.unchanged), (1, 0));
    let built = site::build(&place.runs(), None, &place.site()).unwrap();
    assert_eq!((built.written.len(), built.unchanged), (0, 1));
    let all = files(&place.site());
    let index = String::from_utf8(all["index.html"].clone()).unwrap();
    for run in ["20260101-000000-0001", "20260102-000000-0002"] {
        assert!(all.contains_key(&format!("runs/{run}/index.html")), "{run}");
        assert!(index.contains(&format!("runs/{run}/index.html")), "{run}");
    }
    assert!(index.contains("new failure"), "the index says where the stage stands");
    assert!(all.contains_key("badges/smoke.svg"));
    assert!(site::run_page(&place.site(), &id("20260101-000000-0001")).is_file());
}

#[test]
fn every_link_of_every_page_leads_to_a_file_of_the_site() {
    let place = Place::new();
    place.record("20260101-000000-0001", "smoke", "a", &[Outcome::Passed, failed()]);
    place.record_hostile("20260102-000000-0002");
    site::build(&place.runs(), None, &place.site()).unwrap();
    let all = files(&place.site());
    let mut links = 0;
    for (name, bytes) in all.iter().filter(|(name, _)| name.ends_with(".html")) {
        let text = std::str::from_utf8(bytes).unwrap();
        let folder = Path::new(name).parent().unwrap();
        for attribute in [" href=\"", " src=\""] {
            for (at, _) in text.match_indices(attribute) {
                let link = text[at + attribute.len()..].split('"').next().unwrap();
                if link.starts_with('#') || link == "x onerror=" {
                    continue;
                }
                let mut target = folder.to_owned();
                for part in link.split('/') {
                    if part == ".." { assert!(target.pop()) } else { target.push(part) }
                }
                let target = target.to_str().unwrap();
                assert!(all.contains_key(target), "{name} links to {link}, which is not there");
                links += 1;
            }
        }
    }
    assert!(links > 40, "only {links} links were looked at");
}

#[test]
fn hostile_text_and_files_reach_the_site_escaped_and_inert() {
    let place = Place::new();
    place.record_hostile("20260102-000000-0002");
    site::build(&place.runs(), None, &place.site()).unwrap();
    for (name, bytes) in files(&place.site()) {
        assert!(!name.contains(['<', '"']), "{name}");
        assert!(!name.ends_with("evil.html"), "{name}");
        assert!(!name.contains("passwd"), "{name}");
        if name.ends_with(".html") || name.ends_with(".svg") {
            let text = String::from_utf8(bytes).unwrap();
            for bad in
                ["<script>window", "<img src=x", "<svg onload", "\u{202e}", "<b>raid5", "\u{1b}"]
            {
                assert!(!text.contains(bad), "{name} holds {bad:?}");
            }
        }
    }
    assert!(HOSTILE.contains("<script>"));
}

#[test]
fn an_interrupted_run_is_told_with_the_stages_it_finished() {
    let place = Place::new();
    let mut events = crate::sample::events("20260101-000000-0001", &[Outcome::Passed, failed()]);
    let last = events.len() - 3;
    events.truncate(last);
    place.record_events(&events);
    let built = site::build(&place.runs(), None, &place.site()).unwrap();
    assert!(built.broken.is_empty());
    let page = site::run_page(&place.site(), &id("20260101-000000-0001"));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("interrupted") && page.contains(">passed<"), "{page}");
}
