//! The kernel's cries for help, cut out of the console as they come.
//!
//! [`Detector`] reads lines. A first line opens a report, the lines after it confirm it and name the culprit, and
//! it closes at the kernel's own end mark, at the next first line, after a pause, or when it has grown too
//! long. Several may be open at once where the kernel names who prints (`CONFIG_PRINTK_CALLER`).
//!
//! A console is not evidence: any program may write to it, and root may write to `/dev/kmsg`. So once the
//! kernel has shown that it stamps its lines, lines without a stamp open nothing; a stamp from the past (a program that
//! prints `dmesg`) opens nothing either; and a first line alone counts only where no more is to be expected.

mod headline;
mod signature;

use std::collections::HashMap;

use kiln_model::hostile::visible;
use kiln_model::splat::{Splat, SplatKind};

use crate::console::Line;
use headline::{Headline, headline};
use signature::{bounded, function, is_waiting};

/// The most lines of one report.
const MAX_LINES: usize = 200;
/// The most bytes of one excerpt.
const MAX_EXCERPT: usize = 24 << 10;
/// Lines of the kernel kept from before the first line (`cut here`, `====`).
const LINES_BEFORE: usize = 2;
/// How far apart, on the kernel's clock, two lines of a report may be, in microseconds.
const LONGEST_PAUSE: u64 = 1_500_000;
/// How much older than the newest a line may be, in microseconds: processors print out of turn.
const OUT_OF_TURN: u64 = 2_000_000;
/// The most reports open at once.
const MAX_OPEN: usize = 16;
/// How often one signature is reported; a warning in a loop must not drown the rest.
const MAX_REPEATS: u32 = 16;
/// The most signatures told apart on one machine.
const MAX_SIGNATURES: usize = 256;

/// Finds reports in a stream of console lines.
#[derive(Debug, Default)]
pub struct Detector {
    open: HashMap<Speaker, Open>,
    before: Vec<String>,
    newest: Option<u64>,
    seen: HashMap<String, u32>,
}

/// Who prints, where the kernel says so: reports of different speakers do not mix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Speaker(Option<String>);

#[derive(Debug)]
struct Open {
    head: Headline,
    excerpt: String,
    lines: usize,
    newest: u64,
    confirmed: bool,
    culprit: Option<String>,
    in_trace: bool,
    at_lock: Option<String>,
}

impl Detector {
    /// One that has seen nothing.
    pub fn new() -> Detector {
        Detector::default()
    }

    /// Whether a report has begun and not ended: more lines are awaited.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Reads one line; reports that ended with it are given to `each`.
    pub fn push(&mut self, line: &Line, mut each: impl FnMut(Splat)) {
        if !self.is_the_kernels(line) {
            return;
        }
        let stamp = line.stamp.unwrap_or(0);
        self.close_where(&mut each, |open| stamp.saturating_sub(open.newest) > LONGEST_PAUSE);
        let head = headline(&line.text);
        let speaker = Speaker(line.caller.clone());
        if let Some(open) = self.open.get_mut(&speaker) {
            match head {
                Some(head) if !open.continues_with(&head) => {
                    self.close(&speaker, &mut each);
                    self.begin(line, head, &mut each);
                }
                _ => {
                    let done = open.take(line);
                    if done {
                        self.close(&speaker, &mut each);
                    }
                }
            }
        } else if let Some(head) = head {
            self.begin(line, head, &mut each);
        } else {
            if self.before.len() == LINES_BEFORE {
                self.before.remove(0);
            }
            self.before.push(visible(&line.text));
        }
    }

    /// Ends every open report: the console has been silent for a while, or has ended.
    pub fn finish(&mut self, mut each: impl FnMut(Splat)) {
        self.close_where(&mut each, |_| true);
    }

    fn is_the_kernels(&mut self, line: &Line) -> bool {
        match (line.stamp, self.newest) {
            // A kernel built without stamps, or not yet heard of.
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(stamp), newest) => {
                let newest = newest.unwrap_or(0);
                // A machine that started over begins at zero again, but then so does its detector.
                self.newest = Some(newest.max(stamp));
                stamp + OUT_OF_TURN >= newest
            }
        }
    }

    fn begin(&mut self, line: &Line, head: Headline, each: &mut impl FnMut(Splat)) {
        if self.open.len() == MAX_OPEN {
            self.close_where(each, |_| true);
        }
        let mut open = Open {
            head,
            excerpt: String::new(),
            lines: 0,
            newest: line.stamp.unwrap_or(0),
            confirmed: false,
            culprit: None,
            in_trace: false,
            at_lock: None,
        };
        for before in self.before.drain(..) {
            if before.starts_with("---") || before.starts_with("===") || before.starts_with("***") {
                open.append(&before);
            }
        }
        let alone = open.head.sure && open.head.kind == SplatKind::OomKill;
        open.take(line);
        let speaker = Speaker(line.caller.clone());
        self.open.insert(speaker.clone(), open);
        if alone {
            self.close(&speaker, each);
        }
    }

    fn close(&mut self, speaker: &Speaker, each: &mut impl FnMut(Splat)) {
        if let Some(open) = self.open.remove(speaker) {
            self.report(open, each);
        }
    }

    fn close_where(&mut self, each: &mut impl FnMut(Splat), mut which: impl FnMut(&Open) -> bool) {
        let mut speakers: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| which(open))
            .map(|(speaker, _)| speaker.clone())
            .collect();
        speakers.sort_unstable();
        for speaker in speakers {
            self.close(&speaker, each);
        }
    }

    fn report(&mut self, open: Open, each: &mut impl FnMut(Splat)) {
        if !open.confirmed && !open.head.sure {
            return;
        }
        let splat = open.into_splat();
        if self.seen.len() >= MAX_SIGNATURES && !self.seen.contains_key(&splat.signature) {
            return;
        }
        let times = self.seen.entry(splat.signature.clone()).or_insert(0);
        *times = times.saturating_add(1);
        if *times <= MAX_REPEATS {
            each(splat);
        }
    }
}

impl Open {
    /// Whether a first line belongs to this report: an oops announces itself in two or three ways, a warning
    /// with lockdep on prints more, and what the killer of processes does is told in two lines.
    fn continues_with(&self, head: &Headline) -> bool {
        use SplatKind::{Bug, HungTask, Kasan, OomKill, Oops, RcuStall};
        match (self.head.kind, head.kind) {
            (Oops | Bug, Oops) => self.culprit.is_none(),
            (Kasan, Kasan) => false,
            (OomKill, OomKill) => head.sure,
            (RcuStall, RcuStall) => true,
            (HungTask, SplatKind::Lockdep) => true,
            _ => false,
        }
    }

    /// Takes a line in; whether it was the last.
    fn take(&mut self, line: &Line) -> bool {
        let text = line.text.trim();
        self.newest = line.stamp.unwrap_or(self.newest);
        self.append(&visible(&line.text));
        self.learn(text);
        self.is_last(text) || self.lines >= MAX_LINES || self.excerpt.len() >= MAX_EXCERPT
    }

    fn append(&mut self, text: &str) {
        if self.excerpt.len() + text.len() < MAX_EXCERPT {
            self.excerpt.push_str(text);
            self.excerpt.push('\n');
        }
        self.lines += 1;
    }

    fn learn(&mut self, text: &str) {
        let marks = [
            "Call Trace:",
            "<TASK>",
            "<IRQ>",
            "<NMI>",
            "RIP: ",
            "Modules linked in:",
            "Hardware name:",
            "stack backtrace:",
            "CPU: ",
            "Mem-Info:",
            "task:",
            "Workqueue: ",
        ];
        if marks.iter().any(|mark| text.starts_with(mark)) {
            self.confirmed = true;
        }
        if let Some(place) = text.strip_prefix("RIP: ") {
            // `0010:` is the kernel's code segment; a program's registers follow further down.
            let kernel = place.strip_prefix("0010:").and_then(function);
            if self.culprit.is_none() {
                self.culprit = kernel.map(str::to_owned);
            }
            self.in_trace = false;
        } else if text.starts_with("Call Trace:") || text == "<TASK>" || text == "<IRQ>" {
            self.in_trace = true;
        } else if text.starts_with("</") {
            self.in_trace = false;
        } else if self.in_trace && self.culprit.is_none() && self.named_by_trace() {
            let frame = text.contains("+0x").then(|| function(text)).flatten();
            self.culprit = frame.filter(|name| !is_waiting(name)).map(str::to_owned);
        }
        if self.at_lock.is_none()
            && let Some((_, place)) = text.split_once(", at: ")
        {
            self.at_lock = function(place).map(str::to_owned);
        }
        if self.head.kind == SplatKind::OomKill
            && let Some(Headline { kind: SplatKind::OomKill, subject: Some(comm), .. }) =
                headline(text)
        {
            self.head.subject = Some(comm);
            self.confirmed = true;
        }
    }

    fn named_by_trace(&self) -> bool {
        matches!(
            self.head.kind,
            SplatKind::HungTask
                | SplatKind::RcuStall
                | SplatKind::HardLockup
                | SplatKind::SoftLockup
        )
    }

    fn is_last(&self, text: &str) -> bool {
        if text.starts_with("---[ end ") {
            return true;
        }
        match self.head.kind {
            SplatKind::Panic => text.starts_with("Kernel Offset:"),
            SplatKind::HungTask | SplatKind::SoftLockup | SplatKind::HardLockup => {
                text == "</TASK>"
            }
            SplatKind::Lockdep => text == "</TASK>",
            SplatKind::Kasan | SplatKind::Kcsan | SplatKind::Kmsan | SplatKind::Ubsan => {
                self.confirmed && text.starts_with("=====")
            }
            SplatKind::OomKill => self.head.subject.is_some(),
            SplatKind::Oops | SplatKind::Bug | SplatKind::Warning | SplatKind::RcuStall => false,
        }
    }

    fn into_splat(self) -> Splat {
        let head = self.head;
        let subject = match head.kind {
            SplatKind::Lockdep => match self.at_lock {
                Some(place) => Some(format!("{} in {place}", head.fallback)),
                None => None,
            },
            SplatKind::Panic | SplatKind::OomKill => head.subject,
            SplatKind::Oops | SplatKind::SoftLockup | SplatKind::HardLockup => {
                self.culprit.or(head.subject)
            }
            _ => head.subject.or(self.culprit),
        };
        let subject = subject.unwrap_or(head.fallback);
        let signature = bounded(&format!("{}: {subject}", head.kind.word()));
        Splat { kind: head.kind, signature, excerpt: self.excerpt }
    }
}
