//! `kiln plan`: what a run would do.

use std::time::Duration;

use kiln_image::cache::ForeseenImage;
use kiln_model::plan::Plan;
use kiln_model::scenario::{Disk, DiskStart, Making};
use serde_json::json;

use super::run::DEFAULT_SCENARIO;
use super::target;
use crate::arguments::PlanArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::hostile;
use crate::reporter::rows;
use crate::session::Session;
use crate::terminal::{self, Tone, paint};

/// `kiln plan`
pub(crate) fn plan(mut session: Session, args: &PlanArgs) -> Result<Exit, Failure> {
    if args.list {
        return list(&session);
    }
    // What `kiln run` would run without a name, it plans.
    let name = args.target.scenario.as_deref().unwrap_or(DEFAULT_SCENARIO);
    target::machine_flags(&mut session, &args.machine)?;
    let loaded = target::scenario(name)?;
    let kernel = target::chosen_kernel(&mut session, args.target.kernel.as_deref())?;
    let mut choices = target::choices(&session);
    choices.stages.clone_from(&args.target.stages);
    let plan = target::planned(&loaded.scenario, &kernel.identity(), &choices)?;
    let image = target::foreseen(&session, &loaded, &kernel, plan.root)?;
    if session.json() {
        session.out_json(&as_json(&plan, image.as_ref()))?;
        return Ok(Exit::Success);
    }
    for line in lines(&plan, &kernel.image.display().to_string(), image.as_ref()) {
        terminal::out_line(&line)?;
    }
    Ok(Exit::Success)
}

fn list(session: &Session) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    for shipped in kiln_runner::shipped::ALL {
        rows.push((shipped.name, target::scenario(shipped.name)?.scenario.description));
    }
    if session.json() {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, description)| json!({"name": name, "description": description}))
            .collect();
        session.out_json(&rows)?;
        return Ok(Exit::Success);
    }
    for (name, description) in rows {
        terminal::out_line(&format!(
            "{} {description}",
            paint(Tone::Bold, &format!("{name:<24}"))
        ))?;
    }
    Ok(Exit::Success)
}

fn lines(plan: &Plan, boot: &str, image: Option<&ForeseenImage>) -> Vec<String> {
    let machine = &plan.machine;
    let mut lines = vec![
        format!("scenario  {}", plan.scenario),
        format!("kernel    {} ({})", hostile::line(&plan.kernel.release), hostile::line(boot)),
        image.map_or_else(
            || "image     unknown: this kiln has no guest executable".to_owned(),
            image_line,
        ),
        format!(
            "machine   {} MiB, {} cpu{}, boot within {}, a hang after {}",
            machine.memory >> 20,
            machine.cpus,
            if machine.cpus == 1 { "" } else { "s" },
            rows::seconds(machine.boot_timeout_ms),
            rows::seconds(machine.hang_timeout_ms),
        ),
    ];
    for note in image.into_iter().flat_map(|image| &image.notes) {
        lines.insert(3, format!("          {}", hostile::line(note)));
    }
    if !plan.kernel_parameters.is_empty() {
        lines.push(format!("          {}", hostile::line(&plan.kernel_parameters.join(" "))));
    }
    for disk in &plan.disks {
        lines.push(disk_line(disk));
    }
    for stage in &plan.stages {
        let limit = u64::try_from(stage.timeout.get().as_millis()).unwrap_or(u64::MAX);
        let fresh = if stage.fresh { ", on a fresh machine" } else { "" };
        lines.push(format!("stage     {}, at most {}{fresh}", stage.name, rows::seconds(limit)));
    }
    if !plan.left_out.is_empty() {
        let names: Vec<&str> = plan.left_out.iter().map(|name| name.as_str()).collect();
        lines.push(format!("left out  {}", names.join(", ")));
    }
    lines.push(format!("longest   {}", rows::seconds(millis(plan.longest()))));
    lines
}

fn disk_line(disk: &Disk) -> String {
    let size = disk.size.map_or_else(String::new, |size| format!(" {size}"));
    let start = match &disk.start {
        DiskStart::Empty => return format!("disk      {}{size}", disk.serial),
        start => start_word(start),
    };
    format!("disk      {}{size}, a clone of {}", disk.serial, hostile::line(&start))
}

/// What a disk starts as, in few words.
fn start_word(start: &DiskStart) -> String {
    match start {
        DiskStart::Empty => "nothing".to_owned(),
        DiskStart::Base { disk, snapshot } => format!("{disk}@{snapshot}"),
        DiskStart::Image { path } => path.display().to_string(),
        DiskStart::Made(Making { filesystem: Some(name), prepare: None }) => {
            format!("an empty {name}, made once")
        }
        DiskStart::Made(Making { filesystem: Some(name), .. }) => {
            format!("a prepared {name}, made once")
        }
        DiskStart::Made(_) => "what is prepared once".to_owned(),
    }
}

fn image_line(image: &ForeseenImage) -> String {
    let key: String = image.key.chars().take(16).collect();
    format!("image     {key}, {}", if image.cached { "in the cache" } else { "to be built" })
}

fn as_json(plan: &Plan, image: Option<&ForeseenImage>) -> serde_json::Value {
    let stages: Vec<_> = plan
        .stages
        .iter()
        .map(|stage| {
            json!({
                "name": stage.name,
                "timeout_ms": stage.timeout.as_millis(),
                "fresh": stage.fresh,
                "artifacts": stage.artifacts,
            })
        })
        .collect();
    let disks: Vec<_> = plan
        .disks
        .iter()
        .map(|disk| {
            json!({
                "serial": disk.serial,
                "size": disk.size.map(|size| size.get()),
                "start": start_word(&disk.start),
            })
        })
        .collect();
    json!({
        "schema": 1,
        "scenario": plan.scenario,
        "kernel": plan.kernel,
        "image": image.map(|image| json!({
            "key": image.key, "cached": image.cached, "notes": image.notes,
        })),
        "machine": plan.machine,
        "kernel_parameters": plan.kernel_parameters,
        "disks": disks,
        "environment": plan.environment.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "stages": stages,
        "left_out": plan.left_out,
        "longest_ms": millis(plan.longest()),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
