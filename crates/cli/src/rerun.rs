//! Running again: what a run was asked for is recorded as a command line that means the same from any folder, and
//! parsed by the same parser that read the first one.

use clap::Parser as _;
use kiln_history::RunSummary;
use kiln_model::outcome::Outcome;

use crate::arguments::{Arguments, Command, MachineArgs, RunArgs};

/// The arguments of the `kiln run` that was recorded; none for a command line of another kind or version.
pub(crate) fn recorded(command: &[String]) -> Option<RunArgs> {
    match Arguments::try_parse_from(command).ok()?.command {
        Command::Run(args) => Some(args),
        _ => None,
    }
}

/// The kernel that was named.
pub(crate) fn kernel_of(command: &[String]) -> Option<String> {
    recorded(command)?.target.kernel
}

/// What to run again: the recorded arguments, with what was typed now on top. Without a pattern, the stages that did
/// not pass.
pub(crate) fn again(run: &RunSummary, typed: RunArgs) -> Option<RunArgs> {
    let mut args = recorded(&run.command)?;
    let redo = |outcome: Option<&Outcome>| {
        !matches!(outcome, Some(Outcome::Passed | Outcome::Skipped { .. }))
    };
    args.target.stages = match typed.target.stages.is_empty() {
        true => {
            let stages = run.stages.iter().filter(|stage| redo(stage.outcome.as_ref()));
            stages.map(|stage| stage.name.to_string()).collect()
        }
        false => typed.target.stages,
    };
    args.target.kernel = typed.target.kernel.or(args.target.kernel);
    args.timeout = typed.timeout.or(args.timeout);
    args.environment.extend(typed.environment);
    if !typed.arguments.is_empty() {
        args.arguments = typed.arguments;
    }
    args.machine = over(typed.machine, args.machine);
    args.keep_disks = typed.keep_disks.or(args.keep_disks);
    args.junit = typed.junit;
    args.bisect = typed.bisect;
    args.rerun = None;
    Some(args)
}

fn over(typed: MachineArgs, recorded: MachineArgs) -> MachineArgs {
    MachineArgs {
        memory: typed.memory.or(recorded.memory),
        cpus: typed.cpus.or(recorded.cpus),
        machines: typed.machines.or(recorded.machines),
        acceleration: typed.acceleration.or(recorded.acceleration),
        qemu: typed.qemu.or(recorded.qemu),
        boot_timeout: typed.boot_timeout.or(recorded.boot_timeout),
        hang_timeout: typed.hang_timeout.or(recorded.hang_timeout),
        parameters: recorded.parameters.into_iter().chain(typed.parameters).collect(),
        fast: typed.fast || recorded.fast,
        root: typed.root.or(recorded.root),
        cold: typed.cold || (recorded.cold && typed.restore.is_none()),
        restore: typed.restore.or(recorded.restore.filter(|_| !typed.cold)),
    }
}

/// The command line to record.
pub(crate) fn command_line(source: &str, kernel: Option<&str>, args: &RunArgs) -> Vec<String> {
    let mut words: Vec<String> = ["kiln", "run", source].map(str::to_owned).into();
    let mut option = |name: &str, value: Option<&str>| {
        // One word, so that a value which begins with a dash stays a value.
        words.extend(value.map(|value| format!("{name}={value}")));
    };
    let machine = &args.machine;
    option("--kernel", kernel);
    args.target.stages.iter().for_each(|pattern| option("--stage", Some(pattern)));
    option("--timeout", args.timeout.as_deref());
    option("--keep-disks", args.keep_disks.as_deref());
    for (name, value) in &args.environment {
        option("--env", Some(&format!("{name}={value}")));
    }
    option("--memory", machine.memory.as_deref());
    option("--cpus", machine.cpus.as_deref());
    option("--machines", machine.machines.as_deref());
    option("--acceleration", machine.acceleration.as_deref());
    option("--qemu", machine.qemu.as_deref());
    option("--boot-timeout", machine.boot_timeout.as_deref());
    option("--hang-timeout", machine.hang_timeout.as_deref());
    option("--root", machine.root.as_deref());
    option("--restore", machine.restore.as_deref());
    machine.parameters.iter().for_each(|parameter| option("--parameter", Some(parameter)));
    if machine.fast {
        words.push("--fast".to_owned());
    }
    if machine.cold {
        words.push("--cold".to_owned());
    }
    if !args.arguments.is_empty() {
        words.push("--".to_owned());
        words.extend_from_slice(&args.arguments);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_command_line_means_the_same_again() {
        let typed = [
            "kiln",
            "run",
            "five.toml",
            "-k",
            "linux",
            "--stage",
            "a*",
            "--stage",
            "b",
            "--env",
            "A=b=c",
            "--env",
            "B=-x",
            "--timeout",
            "3s",
            "--memory",
            "2G",
            "--parameter",
            "x=1",
            "--fast",
            "--machines",
            "3",
            "--keep-disks",
            "always",
            "--",
            "-g",
            "quick",
        ];
        let args = recorded(&typed.map(str::to_owned)).unwrap();
        let line = command_line("/home/me/five.toml", Some("/home/me/linux"), &args);
        let again = recorded(&line).unwrap();
        assert_eq!(again.target.scenario.as_deref(), Some("/home/me/five.toml"));
        assert_eq!(again.target.kernel.as_deref(), Some("/home/me/linux"));
        let rest = |args: RunArgs| {
            let RunArgs {
                target,
                rerun,
                keep_disks,
                junit,
                timeout,
                environment,
                bisect,
                machine,
                arguments,
            } = args;
            format!(
                "{:?} {rerun:?} {keep_disks:?} {junit:?} {timeout:?} {environment:?} {bisect} {machine:?} {arguments:?}",
                target.stages
            )
        };
        assert_eq!(rest(again), rest(args));
    }
}
