//! `kiln report` and `kiln publish`: the pages, and their copy on a branch.

use std::path::{Path, PathBuf};

use kiln_history::site::{self, Built};
use serde_json::json;

use super::history::{find, from_history, runs_folder};
use crate::arguments::{PublishArgs, ReportArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::hostile;
use crate::session::Session;
use crate::terminal;

/// `kiln report`
pub(crate) fn report(mut session: Session, args: &ReportArgs) -> Result<Exit, Failure> {
    let output = args.output.as_ref().map(|path| path.display().to_string());
    session.flag("report.output", output.as_deref())?;
    let folder = folder(&session);
    let (built, page) = build(&session, args.run.as_deref(), &folder)?;
    if session.json() {
        session.out_json(&json!({
            "folder": folder, "page": page, "written": built.written,
            "unchanged": built.unchanged, "broken": built.broken.len(),
        }))?;
    } else {
        terminal::out_line(&page.display().to_string())?;
    }
    Ok(Exit::Success)
}

fn folder(session: &Session) -> PathBuf {
    session.config.path("report.output").unwrap_or_else(|| session.home.report())
}

/// Brings the pages up to date; gives also the page to open first.
fn build(session: &Session, run: Option<&str>, folder: &Path) -> Result<(Built, PathBuf), Failure> {
    let only = run.map(|given| find(session, given)).transpose()?.map(|(run, _)| vec![run.id]);
    let built =
        site::build(&runs_folder(session), only.as_deref(), folder).map_err(from_history)?;
    for (run, error) in &built.broken {
        terminal::say(&format!("warning: run {run}: {}", hostile::line(&error.to_string())));
    }
    if !site::has_player() {
        terminal::say(
            "note: this kiln was built without the player: its pages name `kiln replay` instead",
        );
    }
    let page = match only.as_deref() {
        Some([run]) => site::run_page(folder, run),
        _ => built.index.clone(),
    };
    Ok((built, page))
}

/// `kiln publish`
pub(crate) fn publish(mut session: Session, args: &PublishArgs) -> Result<Exit, Failure> {
    session.flag("publish.git", args.git.as_deref())?;
    session.flag("publish.branch", args.branch.as_deref())?;
    let (Some(remote), Some(branch)) =
        (session.config.text("publish.git"), session.config.text("publish.branch"))
    else {
        return Err(Failure::new(Exit::Usage, "which repository?")
            .hint("kiln publish --git REMOTE --branch BRANCH"));
    };
    // The usual folder may hold runs that nobody asked to publish.
    let scratch = args.run.as_ref().map(|_| tempfile::tempdir()).transpose()?;
    let folder =
        scratch.as_ref().map_or_else(|| folder(&session), |scratch| scratch.path().join("site"));
    build(&session, args.run.as_deref(), &folder)?;
    let published =
        kiln_history::publish(&folder, remote, branch, &session.folder).map_err(|error| {
            let exit = match &error {
                kiln_history::HistoryError::NoGit { .. } => Exit::Setup,
                kiln_history::HistoryError::Branch { .. }
                | kiln_history::HistoryError::NoSite { .. } => Exit::Usage,
                _ => Exit::InfrastructureBroke,
            };
            let shown = hostile::line(remote).into_owned();
            from_history(error).with_exit(exit).hint(format!("git ls-remote {shown}"))
        })?;
    if session.json() {
        session.out_json(&json!({
            "commit": published.commit, "new": published.new, "runs": published.runs,
        }))?;
    } else {
        let what = if published.new { "published" } else { "nothing new:" };
        terminal::out_line(&format!("{what} {} runs, {}", published.runs, published.commit))?;
    }
    Ok(Exit::Success)
}
