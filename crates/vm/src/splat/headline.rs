//! The first line of a report: which kind it opens and what is already known from that line.

use kiln_model::splat::SplatKind;

use super::signature::{function, normal, without_line_numbers};

/// What a first line tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Headline {
    pub(super) kind: SplatKind,
    /// The signature's second half, where the line itself has it; else it comes from the body.
    pub(super) subject: Option<String>,
    /// What stands in for the subject when the body does not bring it either.
    pub(super) fallback: String,
    /// Whether the line is enough, or lines only a kernel would print must follow.
    pub(super) sure: bool,
}

impl Headline {
    fn new(kind: SplatKind, text: &str) -> Headline {
        Headline { kind, subject: None, fallback: normal(text), sure: false }
    }

    fn about(mut self, subject: String) -> Headline {
        self.subject = Some(subject);
        self
    }

    fn sure(mut self) -> Headline {
        self.sure = true;
        self
    }
}

/// Lines that look like a first line and are none.
const BENIGN: &[(&str, &str)] = &[
    ("WARNING: stack going in the wrong direction", "the unwinder gives up within another report"),
    ("WARNING: kernel stack regs at", "the unwinder gives up within another report"),
    ("WARNING: kernel stack frame pointer at", "the unwinder gives up within another report"),
    ("WARNING: can't dereference registers", "the unwinder gives up within another report"),
    ("WARNING: can't access registers", "the unwinder gives up within another report"),
];

/// Recognises a first line (without its stamp).
pub(super) fn headline(text: &str) -> Option<Headline> {
    let text = text.trim();
    if BENIGN.iter().any(|(start, _why)| text.starts_with(start)) {
        return None;
    }
    panic(text)
        .or_else(|| sanitizer(text))
        .or_else(|| lockup(text))
        .or_else(|| oops(text))
        .or_else(|| bug(text))
        .or_else(|| warning(text))
        .or_else(|| out_of_memory(text))
}

fn panic(text: &str) -> Option<Headline> {
    let why = text.strip_prefix("Kernel panic - not syncing:")?.trim();
    Some(Headline::new(SplatKind::Panic, why).about(normal(why)).sure())
}

fn sanitizer(text: &str) -> Option<Headline> {
    if let Some(what) = text.strip_prefix("UBSAN: ") {
        return Some(Headline::new(SplatKind::Ubsan, what).about(without_line_numbers(what)));
    }
    let (kind, what) = [
        ("BUG: KASAN: ", SplatKind::Kasan),
        ("BUG: KCSAN: ", SplatKind::Kcsan),
        ("BUG: KMSAN: ", SplatKind::Kmsan),
        ("BUG: KFENCE: ", SplatKind::Kasan),
    ]
    .into_iter()
    .find_map(|(start, kind)| Some((kind, text.strip_prefix(start)?)))?;
    let found = Headline::new(kind, what);
    let Some((act, place)) = what.split_once(" in ") else {
        return Some(found);
    };
    // A race is between two functions; which is named first is chance.
    let mut names: Vec<&str> = place.split(" / ").filter_map(function).collect();
    names.sort_unstable();
    match names.is_empty() {
        true => Some(found),
        false => Some(found.about(format!("{} in {}", normal(act), names.join(" / ")))),
    }
}

fn lockup(text: &str) -> Option<Headline> {
    let bare = text.strip_prefix("NMI ").unwrap_or(text);
    let bare = bare.strip_prefix("watchdog: ").unwrap_or(bare);
    let bare = bare.strip_prefix("rcu: ").unwrap_or(bare);
    if bare.starts_with("BUG: soft lockup - CPU#") {
        return Some(Headline::new(SplatKind::SoftLockup, "CPU stuck"));
    }
    if bare.starts_with("BUG: workqueue lockup - pool") {
        return Some(Headline::new(SplatKind::SoftLockup, "workqueue lockup").sure());
    }
    if bare.starts_with("Watchdog detected hard LOCKUP on cpu")
        || bare.starts_with("CPU") && bare.contains(": Watchdog detected hard LOCKUP")
    {
        return Some(Headline::new(SplatKind::HardLockup, "CPU stuck with interrupts off"));
    }
    let info = bare.strip_prefix("INFO: ")?;
    if info.starts_with("task ") && info.contains(" blocked for more than ")
        || info.starts_with("task ") && info.contains(" blocked in I/O wait for more than ")
    {
        return Some(Headline::new(SplatKind::HungTask, "task blocked"));
    }
    if info.contains("detected stall")
        || info.contains("self-detected stall")
        || info.contains("detected expedited stalls")
    {
        let flavour = info.split(' ').next().unwrap_or("rcu");
        return Some(Headline::new(SplatKind::RcuStall, flavour));
    }
    match info {
        "trying to register non-static key." | "lockdep is turned off." => {
            Some(Headline::new(SplatKind::Lockdep, info))
        }
        _ => None,
    }
}

fn oops(text: &str) -> Option<Headline> {
    let starts = [
        "BUG: kernel NULL pointer dereference",
        "BUG: unable to handle",
        "BUG: stack guard page was hit",
        "BUG: TASK stack guard page was hit",
        "general protection fault",
        "Oops:",
        "Internal error: Oops",
        "Unable to handle kernel",
    ];
    let numbered = || {
        let (before, after) = text.rsplit_once("[#")?;
        let (number, _) = after.split_once(']')?;
        let digits = (1..=6).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        let code = before.trim_end().rsplit(' ').next()?;
        let hex = code.len() == 4 && code.bytes().all(|b| b.is_ascii_hexdigit());
        (digits && hex).then_some(())
    };
    if starts.iter().any(|start| text.starts_with(start)) || numbered().is_some() {
        let what = text.split([',', ':']).take(2).collect::<Vec<_>>().join(":");
        return Some(Headline::new(SplatKind::Oops, &what));
    }
    None
}

fn bug(text: &str) -> Option<Headline> {
    if let Some(place) = text.strip_prefix("kernel BUG at ") {
        return Some(Headline::new(SplatKind::Bug, &without_line_numbers(place)));
    }
    let what = text.strip_prefix("BUG: ")?;
    if what.starts_with("MAX_") || what.starts_with("key ") {
        return Some(Headline::new(SplatKind::Lockdep, what));
    }
    let kind_of = what.split([':', ',', '!']).next().unwrap_or(what);
    // `sleeping function called from invalid context at fs/x.c:12`
    Some(Headline::new(SplatKind::Bug, kind_of).about(without_line_numbers(kind_of)))
}

fn warning(text: &str) -> Option<Headline> {
    let what = text.strip_prefix("WARNING: ")?;
    if what.starts_with("CPU: ") {
        // `CPU: 0 PID: 58 at fs/x.c:12 function+0x1/0x2 [module]`
        let (_, place) = what.split_once(" at ")?;
        let found = Headline::new(SplatKind::Warning, &without_line_numbers(place));
        return Some(match place.split(' ').take(2).find_map(with_offset) {
            Some(name) => found.about(name.to_owned()),
            None => found,
        });
    }
    if let Some((place, rest)) = what.split_once(" at ")
        && rest.contains("CPU#")
    {
        // Since 6.18: `fs/x.c:12 at function+0x1/0x2, CPU#0: comm/58`
        let found = Headline::new(SplatKind::Warning, &without_line_numbers(place));
        return Some(match with_offset(rest.split([' ', ',']).next().unwrap_or(rest)) {
            Some(name) => found.about(name.to_owned()),
            None => found,
        });
    }
    let lockdep = ["lock", "RCU usage", "unsafe", "sleeping"];
    lockdep.iter().any(|word| what.contains(word)).then(|| Headline::new(SplatKind::Lockdep, what))
}

fn out_of_memory(text: &str) -> Option<Headline> {
    if let Some((comm, _)) = text.split_once(" invoked oom-killer: ") {
        return Some(Headline::new(SplatKind::OomKill, comm));
    }
    let (_, killed) = text
        .strip_prefix("Out of memory")
        .or_else(|| text.strip_prefix("Memory cgroup out of memory"))?
        .split_once("Killed process ")?;
    let comm = killed.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let comm = comm.map_or("", |(comm, _)| comm);
    Some(Headline::new(SplatKind::OomKill, comm).about(normal(comm)).sure())
}

/// `name+0x1/0x2` and nothing less.
fn with_offset(word: &str) -> Option<&str> {
    word.contains("+0x").then(|| function(word)).flatten()
}
