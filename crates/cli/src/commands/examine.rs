//! `kiln image diff` and `kiln image verify`.

use std::path::Path;

use kiln_image::cache::ImageError;
use kiln_image::examine::{Difference, Examined, differences, examine, examine_file};
use serde_json::json;

use super::image::{refused, store};
use crate::arguments::{ImageDiffArgs, ImageVerifyArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::session::Session;
use crate::terminal;

/// `kiln image diff`
pub(crate) fn diff(session: &Session, args: &ImageDiffArgs) -> Result<Exit, Failure> {
    let (before, after) = (open(session, &args.before)?, open(session, &args.after)?);
    let found = differences(&before, &after, args.times);
    let path = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    if session.json() {
        let rows: Vec<_> = found
            .iter()
            .map(|(name, difference)| match difference {
                Difference::Removed => json!({"path": path(name), "change": "removed"}),
                Difference::Added => json!({"path": path(name), "change": "added"}),
                Difference::Changed(what) => {
                    json!({"path": path(name), "change": "changed", "what": what})
                }
            })
            .collect();
        session.out_json(&rows)?;
    } else {
        for (name, difference) in &found {
            let shown = path(name);
            let name = hostile::line(&shown);
            terminal::out_line(&match difference {
                Difference::Removed => format!("- {name}"),
                Difference::Added => format!("+ {name}"),
                Difference::Changed(what) => {
                    format!("~ {name}: {}", hostile::line(&what.join(", ")))
                }
            })?;
        }
    }
    Ok(if found.is_empty() { Exit::Success } else { Exit::Unsound })
}

/// `kiln image verify`
pub(crate) fn verify(session: &Session, args: &ImageVerifyArgs) -> Result<Exit, Failure> {
    let mut exit = Exit::Success;
    let mut rows = Vec::new();
    for image in &args.images {
        let mut faults = Vec::new();
        if !Path::new(image).is_file() {
            faults.extend(store(session)?.check(image).map_err(refused)?);
        }
        match open(session, image) {
            Ok(examined) => faults.extend(examined.faults),
            // What is there and cannot be understood is damaged, too.
            Err(failure) if failure.exit == Exit::Unsound => {
                faults.push(format!("{:#}", failure.error));
            }
            Err(failure) => return Err(failure),
        }
        if !faults.is_empty() {
            exit = Exit::Unsound;
        }
        if session.json() {
            rows.push(json!({"image": image, "sound": faults.is_empty(), "faults": faults}));
            continue;
        }
        let verdict = if faults.is_empty() { "sound" } else { "damaged" };
        terminal::out_line(&format!("{verdict} {}", hostile::line(image)))?;
        for fault in &faults {
            terminal::out_line(&format!("  {}", hostile::line(fault)))?;
        }
    }
    if session.json() {
        session.out_json(&rows)?;
    }
    Ok(exit)
}

/// An image in a file, or in the cache.
fn open(session: &Session, image: &str) -> Result<Examined, Failure> {
    let path = Path::new(image);
    let examined = if path.is_file() {
        examine_file(path)
    } else {
        let store = store(session)?;
        let plan = store.root_plan(image);
        if let Err(damaged @ ImageError::Plan(_)) = plan {
            return Err(Failure::from(damaged).with_exit(Exit::Unsound));
        }
        match plan.map_err(refused)? {
            Some(plan) => examine(&plan),
            None => examine_file(&store.place(image).map_err(refused)?),
        }
    };
    examined.tried(|| format!("cannot examine {image}")).exits(Exit::Unsound)
}
