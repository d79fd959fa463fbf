//! How a running stage ends: a pure decision over what was seen and when.
//!
//! Nothing here waits or reads a clock. The job feeds in every [`Sign`] with the time it came, asks
//! [`Watch::ending`] after each and whenever [`Watch::wake_at`] has passed, and acts on the answer. Times count from
//! any one instant.
//!
//! Several things can be true at once; the stronger explanation wins:
//!
//! 1. A fatal splat makes the stage crashed, whatever its script says afterwards. The rest of the report is waited
//!    for, for [`Limits::report`] at most or until the machine is gone; the first fatal splat names the crash, since what
//!    follows it (`panic: Fatal exception`) is its echo.
//! 2. The script's exit counts once the console has been still for [`Limits::still`]: a splat printed before the exit
//!    may arrive after it, and one whose report has begun is waited for.
//! 3. A machine that is gone without a splat says itself whose fault that was ([`Gone`]).
//! 4. Silence for [`Limits::hang`] is a hang, even where the deadline has passed meanwhile.
//! 5. The deadline.

use std::time::Duration;

use kiln_model::outcome::{Outcome, TimeoutCause};
use kiln_model::splat::Splat;

/// One thing a machine said or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Bytes on the console.
    Console(Vec<u8>),
    /// Bytes on the stage's terminal.
    Terminal(Vec<u8>),
    /// A report has begun on the console; the splat follows when it is whole.
    ReportBegun,
    /// A report was found on the console.
    Splat(Splat),
    /// The agent is alive.
    Heartbeat,
    /// The stage's script ended.
    Exited(Exit),
    /// The agent's channel is of no use any more.
    AgentLost(String),
    /// The machine is gone.
    Gone(Gone),
}

/// How a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// Why a machine is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The guest switched it off, reset it, or made it do so by a triple fault.
    ByGuest(String),
    /// The emulator failed or was killed.
    ByHost(String),
}

/// How long is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the stage.
    pub timeout: Duration,
    /// For silence.
    pub hang: Duration,
    /// For the rest of a crash report.
    pub report: Duration,
    /// For the console to be still after the script's exit.
    pub still: Duration,
    /// For waiting that it becomes still, when it never does.
    pub never_still: Duration,
}

impl Limits {
    /// The limits of a stage; those that are nobody's choice have values that suit a slow machine.
    pub fn of(timeout: Duration, hang: Duration) -> Limits {
        Limits {
            timeout,
            hang,
            report: Duration::from_secs(2),
            still: Duration::from_millis(60),
            never_still: Duration::from_secs(1),
        }
    }
}

/// What ended a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The script did.
    Exited(Exit),
    /// The kernel crashed.
    Crashed {
        /// Of the first fatal splat.
        signature: String,
    },
    /// The machine is gone, and no splat says why.
    Gone(Gone),
    /// The agent answers no more, though the machine runs.
    AgentLost(String),
    /// Nothing was heard for too long.
    Hang,
    /// The stage's time is over.
    Deadline,
}

/// The state of one running stage.
#[derive(Clone, Debug)]
pub struct Watch {
    limits: Limits,
    started: Duration,
    heard: Duration,
    console_at: Duration,
    crash: Option<(Duration, String)>,
    exit: Option<(Duration, Exit)>,
    report_open: Option<Duration>,
    gone: Option<Gone>,
    agent_lost: Option<(Duration, String)>,
}

impl Watch {
    /// A stage that begins now.
    pub fn new(now: Duration, limits: Limits) -> Watch {
        Watch {
            limits,
            started: now,
            heard: now,
            console_at: now,
            crash: None,
            exit: None,
            report_open: None,
            gone: None,
            agent_lost: None,
        }
    }

    /// Takes one sign into account. Of signs that can come but once, the first counts.
    pub fn see(&mut self, now: Duration, sign: &Sign) {
        match sign {
            Sign::Console(_) => {
                self.heard = now;
                self.console_at = now;
            }
            Sign::Terminal(_) | Sign::Heartbeat => self.heard = now,
            Sign::ReportBegun => {
                self.report_open.get_or_insert(now);
            }
            Sign::Splat(splat) => {
                self.heard = now;
                self.report_open = None;
                if splat.kind.is_fatal() && self.crash.is_none() {
                    self.crash = Some((now, splat.signature.clone()));
                }
            }
            Sign::Exited(exit) => {
                self.heard = now;
                self.exit.get_or_insert((now, *exit));
            }
            Sign::AgentLost(why) => {
                self.agent_lost.get_or_insert_with(|| (now, why.clone()));
            }
            Sign::Gone(gone) => {
                self.gone.get_or_insert_with(|| gone.clone());
            }
        }
    }

    /// Whether, and how, the stage has ended.
    pub fn ending(&self, now: Duration) -> Option<Ending> {
        if let Some((at, signature)) = &self.crash {
            let told = self.gone.is_some() || now >= *at + self.limits.report;
            return told.then(|| Ending::Crashed { signature: signature.clone() });
        }
        if let Some((_, exit)) = self.exit {
            let patient_enough = now >= self.exit_counts_at();
            return (patient_enough || self.gone.is_some()).then_some(Ending::Exited(exit));
        }
        if let Some(gone) = &self.gone {
            return Some(Ending::Gone(gone.clone()));
        }
        // The machine's end is about to explain why its agent fell silent.
        if let Some((at, why)) = &self.agent_lost
            && now >= *at + self.limits.report
        {
            return Some(Ending::AgentLost(why.clone()));
        }
        if now >= self.heard + self.limits.hang {
            return Some(Ending::Hang);
        }
        (now >= self.started + self.limits.timeout).then_some(Ending::Deadline)
    }

    /// When the script's exit counts, unless something is seen before.
    fn exit_counts_at(&self) -> Duration {
        let exited = self.exit.map_or(self.started, |(at, _)| at);
        if let Some(begun) = self.report_open {
            // Whoever cuts the report out of the console waits as long for its end, so this is longer.
            return exited.max(begun) + self.limits.report * 2;
        }
        (self.console_at.max(exited) + self.limits.still).min(exited + self.limits.never_still)
    }

    /// When to ask again if no sign comes before.
    pub fn wake_at(&self) -> Duration {
        if let Some((at, _)) = &self.crash {
            return *at + self.limits.report;
        }
        if self.exit.is_some() {
            return self.exit_counts_at();
        }
        let silence = (self.heard + self.limits.hang).min(self.started + self.limits.timeout);
        match &self.agent_lost {
            Some((at, _)) => silence.min(*at + self.limits.report),
            None => silence,
        }
    }
}

/// What a script's own ending means; whether its completion file is there matters only after success.
pub fn judge_exit(exit: Exit, last_words: &str, completion_file_missing: Option<&str>) -> Outcome {
    match exit {
        Exit::Code(0) => match completion_file_missing {
            Some(path) => Outcome::Failed {
                reason: format!("exit status 0, but the completion file {path} is missing"),
            },
            None => Outcome::Passed,
        },
        Exit::Code(77) => {
            let words = last_words.trim();
            let reason = if words.is_empty() { "exit status 77" } else { words };
            Outcome::Skipped { reason: reason.to_owned() }
        }
        Exit::Code(code @ (126 | 127)) => Outcome::Failed {
            reason: format!("exit status {code}: the script, or a command in it, cannot be run"),
        },
        Exit::Code(code) => Outcome::Failed { reason: format!("exit status {code}") },
        Exit::Signal(signal) => {
            Outcome::Failed { reason: format!("killed by signal {signal}{}", signal_name(signal)) }
        }
    }
}

/// What any other ending means.
pub fn judge_ending(ending: &Ending) -> Option<Outcome> {
    Some(match ending {
        Ending::Exited(_) => return None,
        Ending::Crashed { signature } => Outcome::Crashed { signature: signature.clone() },
        Ending::Gone(Gone::ByGuest(how)) => {
            Outcome::Crashed { signature: format!("machine: {how}") }
        }
        Ending::Gone(Gone::ByHost(how)) => Outcome::Broken { reason: how.clone() },
        Ending::AgentLost(why) => Outcome::Broken { reason: format!("the agent was lost: {why}") },
        Ending::Hang => Outcome::TimedOut { cause: TimeoutCause::Hang },
        Ending::Deadline => Outcome::TimedOut { cause: TimeoutCause::Deadline },
    })
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
