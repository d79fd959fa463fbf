//! `kiln shell`: a person in the machine a run would get.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_model::event::{Event, Happening, NoteLevel};
use kiln_model::job::{JobSpec, KeepDisks};
use kiln_model::plan::{Choices, Plan};
use kiln_model::protocol::ErrorKind;
use kiln_model::root::RootChoice;
use kiln_model::scenario::Scenario;
use kiln_model::{RunId, event::KernelIdentity};
use kiln_runner::shell::{Shell, ShellError, ShellEvent, ShellInput};
use kiln_runner::{Bases, Equipment, StopToken, Urgency, settle_acceleration};
use kiln_vm::agent::AgentError;

use super::{revisit, target};
use crate::arguments::ShellArgs;
use crate::config::Side;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::raw_mode::{RawMode, window_size};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::{hostile, run_id, terminal};

/// How often the stop token is looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// Ctrl-], which nothing else uses.
const LEAVE: u8 = 0x1d;
/// So many in a row leave a guest that hangs.
const LEAVE_PRESSES: u32 = 3;

/// `kiln shell`
pub(crate) fn shell(mut session: Session, args: &ShellArgs) -> Result<Exit, Failure> {
    target::machine_flags(&mut session, &args.machine)?;
    let stop = StopToken::new();
    let input: SharedInput = Arc::default();
    let folder = tempfile::tempdir()
        .tried(|| "cannot make a temporary folder".to_owned())
        .exits(Exit::Setup)?;
    let Some((run, stage)) = revisit::parse(&args.scenario) else {
        let (spec, _equipment) = of_a_scenario(session, args, folder.path(), &stop, &input)?;
        return open(&spec, args, &stop, &input);
    };
    if args.kernel.is_some() {
        let text = "a stage of a run has its own kernel, so --kernel says too much";
        return Err(Failure::new(Exit::Usage, text)
            .hint(format!("kiln run --rerun {run} --stage {stage} --kernel KERNEL")));
    }
    let mut revisited = revisit::revisit(&mut session, run, stage)?;
    let spec = &mut revisited.spec;
    let wish = session.config.machine(Side::Above);
    spec.machine.memory = wish.memory.map_or(spec.machine.memory, |memory| memory.get().get());
    spec.machine.cpus = wish.cpus.map_or(spec.machine.cpus, |cpus| cpus.get());
    spec.machine.qemu = wish.qemu.or(spec.machine.qemu.take());
    spec.kernel.parameters.extend(wish.kernel_parameters);
    spec.environment.extend(args.environment.iter().cloned());
    spec.folder = folder.path().to_owned();
    spec.run = fresh_id()?;
    target::check_machine(&session, &spec.machine)?;
    listen(&stop, &input)?;
    open(&revisited.spec, args, &stop, &input)
}

fn fresh_id() -> Result<RunId, Failure> {
    run_id::fresh()
        .ok_or_else(|| Failure::new(Exit::Setup, "the clock of this machine is before 1970"))
}

/// The machine a run of a scenario would get. The image is held as long as its equipment.
fn of_a_scenario(
    mut session: Session,
    args: &ShellArgs,
    folder: &Path,
    stop: &StopToken,
    input: &SharedInput,
) -> Result<(JobSpec, Equipment), Failure> {
    let loaded = target::scenario(&args.scenario)?;
    let kernel = target::chosen_kernel(&mut session, args.kernel.as_deref())?;
    let choices = Choices { environment: args.environment.clone(), ..target::choices(&session) };
    let mut plan = without_stages(&loaded.scenario, &kernel.identity(), &choices);
    if args.persist.is_some() {
        plan.root = RootChoice::Clone;
    }
    target::check_machine(&session, &plan.machine)?;
    listen(stop, input)?;
    let equipment = target::equipment(&session, &loaded, &kernel, plan.root)?;
    settle_acceleration(&mut plan.machine, Some(session.home.cache())).exits(Exit::Setup)?;
    let pool = target::pool(&session);
    let bases = Bases {
        plan: &plan,
        source: &loaded.source,
        folder: loaded.folder.as_deref(),
        equipment: &equipment,
        pool: &pool,
        access: &target::pool_access(),
        persist: args.persist.as_deref(),
    };
    let disks = bases.settle(&mut |text| terminal::say(&hostile::line(&text)), stop);
    let disks = disks.map_err(target::not_based)?;
    let mut places = equipment.places(fresh_id()?, folder.to_owned(), Some(pool), disks);
    places.warm = Some(target::warm(&session));
    Ok((plan.job_spec(&places)?, equipment))
}

/// Boots the machine, and connects the person with the program in it.
fn open(
    spec: &JobSpec,
    args: &ShellArgs,
    stop: &StopToken,
    input: &SharedInput,
) -> Result<Exit, Failure> {
    let view = BootView::new(&spec.kernel.identity.release);
    let opened =
        Shell::open(spec, &target::pool_access(), &mut |event: Event| view.take(&event), stop);
    view.close();
    let shell = opened.map_err(from_shell)?;
    let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let ended = attend(&shell, &args.command, &spec.environment, on_terminal, input, stop);
    if stop.urgency() < Urgency::Kill {
        shell.close();
    }
    ended
}

/// The machine of a run, for which no stage needs to be chosen.
fn without_stages(scenario: &Scenario, kernel: &KernelIdentity, choices: &Choices) -> Plan {
    let wish =
        choices.machine.clone().over(&scenario.machine.clone().over(&choices.machine_defaults));
    let mut environment = scenario.environment.clone();
    environment.retain(|(name, _)| !choices.environment.iter().any(|(chosen, _)| chosen == name));
    environment.extend(choices.environment.iter().cloned());
    Plan {
        scenario: scenario.name.clone(),
        kernel: kernel.clone(),
        machine: wish.settle(),
        kernel_parameters: wish.kernel_parameters,
        fast: wish.fast.unwrap_or(false),
        root: wish.root.unwrap_or_default(),
        restore: wish.restore.unwrap_or_default(),
        prepared: false,
        disks: scenario.disks.clone(),
        environment,
        stages: Vec::new(),
        left_out: Vec::new(),
        keep_disks: KeepDisks::Never,
        machines: 1,
    }
}

/// The running program's input, once there is one, for the thread that hears signals.
type SharedInput = Arc<Mutex<Option<ShellInput>>>;

fn listen(stop: &StopToken, input: &SharedInput) -> Result<(), Failure> {
    let (stop, input) = (stop.clone(), Arc::clone(input));
    signals::listen(move |heard| {
        let input = input.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (heard, input) {
            // What cannot be delivered is lost together with the guest; the main thread hears of that.
            (Heard::Resized, Some(input)) => {
                let (rows, columns) = window_size();
                let _ = input.resize(rows, columns);
            }
            (Heard::Interrupt, Some(input)) => {
                let _ = input.signal(2);
            }
            (Heard::Interrupt, None) => stop.ask(),
            (Heard::Terminate, _) => stop.kill(),
            (Heard::Resized, None) => {}
        }
    })?;
    Ok(())
}

/// Connects the program with our stdin and stdout until it ends.
fn attend(
    shell: &Shell,
    command: &[String],
    environment: &[(String, String)],
    on_terminal: bool,
    shared: &SharedInput,
    stop: &StopToken,
) -> Result<Exit, Failure> {
    let mut program =
        shell.start(command, environment, on_terminal.then(window_size)).map_err(from_shell)?;
    let input = program.input();
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(input.clone());
    // Raw from here to the end of this function, on every path.
    let raw = on_terminal.then(RawMode::enter).transpose()?;
    let (typed, leave) = (input.clone(), stop.clone());
    // Nobody waits for this thread: it may sit in a read for ever.
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || pass_input(&typed, on_terminal, &leave))?;
    let ended = loop {
        if stop.urgency() == Urgency::Kill {
            break Ok(Exit::Interrupted);
        }
        match program.next(GLANCE) {
            Ok(Some(ShellEvent::Output(bytes))) => terminal::out_bytes(&bytes)?,
            Ok(Some(ShellEvent::Exited(status))) => {
                break Ok(Exit::Guest(u8::try_from(status & 0xff).unwrap_or(1)));
            }
            Ok(Some(ShellEvent::Killed(signal))) => {
                break Ok(Exit::Guest(u8::try_from(128 + signal).unwrap_or(255)));
            }
            Ok(None) => {}
            Err(error) => break Err(from_shell(error)),
        }
    };
    drop(raw);
    ended
}

/// Sends what is typed to the guest until the end of the input.
fn pass_input(input: &ShellInput, on_terminal: bool, leave: &StopToken) {
    let mut buffer = [0; 4096];
    let mut presses = 0;
    let mut stdin = io::stdin().lock();
    loop {
        let count = match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = &buffer[..count];
        if on_terminal {
            for &byte in bytes {
                presses = if byte == LEAVE { presses + 1 } else { 0 };
            }
            if presses >= LEAVE_PRESSES {
                leave.kill();
                return;
            }
        }
        if input.write(bytes).is_err() {
            // The guest is lost, which the main thread hears by itself.
            return;
        }
    }
    let _ = input.close();
}

/// How a machine that failed ends the process.
pub(super) fn from_shell(error: ShellError) -> Failure {
    let (exit, hint) = match &error {
        ShellError::Start(_) => (Exit::InfrastructureBroke, "kiln doctor"),
        ShellError::Boot(_) => {
            (Exit::TestsFailed, "a kernel that needs longer gets it with --boot-timeout 5m")
        }
        ShellError::Interrupted => (Exit::Interrupted, "nothing is left running"),
        // As a shell would say it.
        ShellError::Agent {
            source: AgentError::Guest { kind: ErrorKind::NotFound, .. }, ..
        } => (Exit::Guest(127), "what the guest holds is named in [guest] of the scenario"),
        ShellError::Agent { source: AgentError::Guest { .. }, .. } => {
            (Exit::Guest(126), "the machine itself is well: try it by hand in `kiln shell`")
        }
        ShellError::Agent { .. } => {
            (Exit::InfrastructureBroke, "the machine crashed or was switched off")
        }
    };
    Failure::from(error).with_exit(exit).hint(hint)
}

/// What is seen while the machine boots: one line that goes away.
struct BootView {
    bar: Option<indicatif::ProgressBar>,
}

impl BootView {
    fn new(release: &str) -> BootView {
        let bar = terminal::is_live().then(|| {
            let style = indicatif::ProgressStyle::with_template("{prefix} {elapsed} {wide_msg}");
            let bar = indicatif::ProgressBar::no_length();
            bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_spinner()));
            bar.set_prefix(format!("booting {}", hostile::line(release)));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        BootView { bar }
    }

    fn take(&self, event: &Event) {
        match &event.event {
            Happening::Output { text, .. } => {
                if let (Some(bar), Some(line)) = (&self.bar, hostile::last_line(text)) {
                    bar.set_message(hostile::cut(&line, 400).into_owned());
                }
            }
            Happening::Note { level: NoteLevel::Warning, text } => {
                let text = format!("warning: {}", hostile::line(text));
                match &self.bar {
                    Some(bar) => bar.println(text),
                    None => terminal::say(&text),
                }
            }
            _ => {}
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_the_guest_does_not_hold_ends_as_in_any_shell() {
        let refused = |kind| {
            let source = AgentError::Guest { kind, text: "cannot run it".to_owned() };
            from_shell(ShellError::Agent { act: "start the program", source }).exit
        };
        assert_eq!(refused(ErrorKind::NotFound), Exit::Guest(127));
        assert_eq!(refused(ErrorKind::Failed), Exit::Guest(126));
        let lost = ShellError::Agent { act: "listen", source: AgentError::Disconnected };
        assert_eq!(from_shell(lost).exit, Exit::InfrastructureBroke);
    }
}
