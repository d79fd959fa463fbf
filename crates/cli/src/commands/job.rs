//! `kiln job exec`: what `kiln run` starts for each job, and what other machines are sent.

use std::io::Read as _;

use kiln_model::event::Happening;
use kiln_model::job::JobSpec;
use kiln_model::outcome::Verdict;
use kiln_runner::{EventSink, JsonLines, StopToken};

use super::target;
use crate::arguments::{JobCommand, JobExecArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::signals::{self, Heard};

/// `kiln job`
pub(crate) fn job(command: &JobCommand) -> Result<Exit, Failure> {
    let JobCommand::Exec(args) = command;
    exec(args)
}

fn exec(args: &JobExecArgs) -> Result<Exit, Failure> {
    let path = args.spec.display();
    let mut text = String::new();
    let limit = u64::try_from(kiln_model::job::MAX_TEXT).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(&args.spec)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .tried(|| format!("cannot read job spec {path}"))
        .exits(Exit::Usage)?;
    let spec =
        JobSpec::parse(&text).tried(|| format!("{path} is no job spec")).exits(Exit::Usage)?;
    std::fs::create_dir_all(&spec.folder)
        .tried(|| format!("cannot make the run's folder {}", spec.folder.display()))
        .exits(Exit::InfrastructureBroke)?;
    let stop = StopToken::new();
    let asked = stop.clone();
    signals::listen(move |heard| match heard {
        Heard::Interrupt => asked.ask(),
        Heard::Terminate => asked.kill(),
        Heard::Resized => {}
    })?;
    let mut outcomes = Vec::new();
    let mut lines = JsonLines::new(std::io::stdout().lock());
    let mut sink = |event: kiln_model::event::Event| {
        if let Happening::StageEnded { outcome, .. } = &event.event {
            outcomes.push(outcome.clone());
        }
        lines.take(event);
    };
    kiln_runner::job::execute(&spec, &target::pool_access(), &mut sink, &stop);
    Ok(Exit::of_verdict(Verdict::of(&outcomes)))
}
