//! The threads that tell the job what a machine does: one listens to QEMU and its console, one to the terminal of the
//! stage that runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use kiln_model::event::NoteLevel;
use kiln_vm::agent::{Agent, ExitStatus, Session, SessionEvent};
use kiln_vm::console::Line;
use kiln_vm::splat::Detector;
use kiln_vm::{Ended, How, Next, Vm, VmEvent};

use super::machine::News;
use crate::chain::chain;
use crate::watch::{Exit, Gone, Sign};

/// What the threads say.
pub(super) enum Report {
    News(News),
    Ready { agent: Agent, boot_ms: u64, boot_cpu_ms: u64, restored: bool, prepared: bool },
}

/// Passes on what happens to QEMU and on its console. Says whether the kernel has reported anything.
pub(super) fn listen_to_machine(vm: &Vm, reports: SyncSender<Report>) -> Arc<AtomicBool> {
    let events = vm.events();
    let cried = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&cried);
    thread::spawn(move || {
        let mut detector = Detector::new();
        while let Next::Event(event) = events.next(None) {
            let was_open = detector.is_open();
            let sign = match event {
                VmEvent::Console(line) => {
                    detector.push(&line, |_| {});
                    Sign::Console(text_of(&line).into_bytes())
                }
                VmEvent::ConsoleSkipped { lines } => {
                    Sign::Console(format!("[kiln: {lines} lines left out here]\n").into_bytes())
                }
                VmEvent::ConsoleNotKept { reason } => Sign::Console(
                    format!("[kiln: the console is not recorded any more: {reason}]\n")
                        .into_bytes(),
                ),
                VmEvent::Splat(splat) => {
                    // One that ended in silence ended without a line that this detector saw.
                    detector.finish(|_| {});
                    Sign::Splat(splat)
                }
                VmEvent::Ended(ended) => Sign::Gone(gone(&ended)),
            };
            if detector.is_open() || matches!(&sign, Sign::Splat(_)) {
                heard.store(true, Ordering::Release);
            }
            if reports.send(Report::News(News::Sign(sign))).is_err() {
                return;
            }
            if !was_open && detector.is_open() {
                let begun = Report::News(News::Sign(Sign::ReportBegun));
                if reports.send(begun).is_err() {
                    return;
                }
            }
        }
    });
    cried
}

/// The line as the console had it.
fn text_of(line: &Line) -> String {
    match line.stamp {
        Some(stamp) => {
            let caller =
                line.caller.as_ref().map_or_else(String::new, |who| format!("[{who:>5}] "));
            format!("[{:5}.{:06}] {caller}{}\n", stamp / 1_000_000, stamp % 1_000_000, line.text)
        }
        None => format!("{}\n", line.text),
    }
}

fn gone(ended: &Ended) -> Gone {
    match ended.how {
        How::PoweredOff | How::Reset => Gone::ByGuest(ended.how.word().to_owned()),
        How::Killed | How::Asked | How::Failed => {
            let last = ended.stderr.lines().rev().find(|line| !line.trim().is_empty());
            let last = last.map_or_else(String::new, |line| format!(": {line}"));
            Gone::ByHost(format!("QEMU ended unasked ({}){last}", ended.status))
        }
    }
}

/// Passes on a stage's terminal until its script has ended.
pub(super) fn read_terminal(mut session: Session, reports: &SyncSender<Report>) {
    loop {
        let sign = match session.next(Instant::now() + Duration::from_secs(3600)) {
            Ok(Some(SessionEvent::Output { bytes, .. })) => Sign::Terminal(bytes),
            Ok(Some(SessionEvent::Exited(ExitStatus::Code(code)))) => {
                Sign::Exited(Exit::Code(code))
            }
            Ok(Some(SessionEvent::Exited(ExitStatus::Signal(signal)))) => {
                Sign::Exited(Exit::Signal(signal))
            }
            Ok(None) => return,
            Err(error) if error.is_timeout() => continue,
            Err(error) => Sign::AgentLost(chain(&error)),
        };
        let last = matches!(sign, Sign::Exited(_) | Sign::AgentLost(_));
        if reports.send(Report::News(News::Sign(sign))).is_err() || last {
            return;
        }
    }
}

/// Notes as they are told.
pub(super) fn told(notes: Vec<String>) -> VecDeque<Report> {
    let told = |text| Report::News(News::Told(NoteLevel::Warning, text));
    notes.into_iter().map(told).collect()
}
