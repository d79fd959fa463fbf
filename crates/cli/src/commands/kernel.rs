//! `kiln kernel`: fetching, listing and removing kernels.

use kiln_image::kernel::fetch::{self, FetchError, FetchRequest, Flavour, Origin, Progress};
use kiln_image::kernel::{Host, Kernel, KernelCache, KernelError};
use serde_json::json;

use crate::arguments::{KernelCommand, KernelFetchArgs, KernelFlavour, KernelNameArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::reporter::rows;
use crate::session::Session;
use crate::terminal::{self, Tone, paint};

/// The cache of kernels.
pub(crate) fn cache(session: &Session) -> KernelCache {
    KernelCache::new(session.home.cache())
}

/// The kernel a user means; none means the running one, else the newest fetched.
pub(crate) fn find(session: &Session, choice: Option<&str>) -> Result<Kernel, KernelError> {
    kiln_image::kernel::find(choice, &Host::this(), &cache(session))
}

/// The same, in the terms of exit codes: a kernel that is not there is this machine's lack.
pub(crate) fn chosen(session: &Session, choice: Option<&str>) -> Result<Kernel, Failure> {
    find(session, choice).map_err(|error| {
        let hint = match &error {
            KernelError::Unreadable { path } => {
                format!("sudo chmod +r {}, or kiln kernel fetch debian", path.display())
            }
            KernelError::NotAKernel { .. } => "kiln kernel ls".to_owned(),
            KernelError::Incomplete { cure, .. } => (*cure).to_owned(),
            KernelError::Index { release, .. } => format!("sudo depmod {release}"),
            _ => "kiln kernel fetch debian".to_owned(),
        };
        Failure::from(error).with_exit(Exit::Setup).hint(hint)
    })
}

/// `kiln kernel`
pub(crate) fn kernel(session: &Session, command: &KernelCommand) -> Result<Exit, Failure> {
    match command {
        KernelCommand::Fetch(args) => get(session, args),
        KernelCommand::Ls => list(session),
        KernelCommand::Rm(args) => remove(session, args),
        KernelCommand::Path(args) => path(session, args),
    }
}

fn get(session: &Session, args: &KernelFetchArgs) -> Result<Exit, Failure> {
    let request = FetchRequest {
        version: args.version.clone(),
        flavour: match args.flavour {
            KernelFlavour::Cloud => Flavour::Cloud,
            KernelFlavour::Generic => Flavour::Generic,
        },
        refresh: args.refresh,
    };
    let mut view = FetchView::new();
    let fetched =
        fetch::fetch(&request, &Origin::Auto, &cache(session), &mut |step| view.show(&step));
    view.close();
    let kernel = fetched.map_err(|error| {
        let exit = match &error {
            FetchError::NoSuchKernel { .. } => Exit::Usage,
            FetchError::NoTools | FetchError::Kernel(_) => Exit::Setup,
            _ => Exit::InfrastructureBroke,
        };
        Failure::from(error).with_exit(exit)
    })?;
    if session.json() {
        session.out_json(&json!({
            "release": kernel.release,
            "package": kernel.package,
            "sha256": kernel.sha256,
            "image": kernel.image(),
        }))?;
    } else {
        terminal::out_line(&kernel.release)?;
    }
    Ok(Exit::Success)
}

/// What a download is doing, on stderr: a bar on a terminal, a line per step elsewhere.
struct FetchView {
    bar: Option<indicatif::ProgressBar>,
    last: String,
}

impl FetchView {
    fn new() -> FetchView {
        let bar = terminal::is_live().then(|| {
            let style = indicatif::ProgressStyle::with_template("{bar:20} {msg}");
            let bar = indicatif::ProgressBar::new(100);
            bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
            bar
        });
        FetchView { bar, last: String::new() }
    }

    fn show(&mut self, step: &Progress<'_>) {
        let (label, detail, percent) = match step {
            Progress::Asking(whom) => (format!("asking {whom}"), String::new(), 0),
            Progress::Downloading { package, done, total } => {
                let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(0);
                let sizes = format!(" {} of {}", rows::mebibytes(*done), rows::mebibytes(*total));
                (format!("downloading {package}"), sizes, percent)
            }
            Progress::Unpacking { files } => {
                ("unpacking".to_owned(), format!(" {files} files"), 100)
            }
            Progress::Indexing => ("indexing modules".to_owned(), String::new(), 100),
            Progress::Retrying(why) => (format!("trying again: {why}"), String::new(), 0),
        };
        let label = hostile::line(&label).into_owned();
        match &self.bar {
            Some(bar) => {
                bar.set_position(percent.min(100));
                bar.set_message(format!("{label}{detail}"));
            }
            None if label != self.last => {
                terminal::say(&label);
                self.last = label;
            }
            None => {}
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Kernels in Kiln's cache and in /boot; those that cannot be read say so.
fn list(session: &Session) -> Result<Exit, Failure> {
    let fetched = cache(session).list().exits(Exit::InfrastructureBroke)?;
    let mut rows: Vec<(String, &str, String)> = fetched
        .iter()
        .map(|kernel| (kernel.release.clone(), "fetched", kernel.image().display().to_string()))
        .collect();
    let boot = Host::this().boot;
    let entries = std::fs::read_dir(&boot).into_iter().flatten().flatten();
    let mut installed: Vec<_> = entries
        .filter_map(|entry| {
            let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            let readable = rustix::fs::access(entry.path(), rustix::fs::Access::READ_OK).is_ok();
            let state = if readable { "boot" } else { "unreadable" };
            Some((release, state, entry.path().display().to_string()))
        })
        .collect();
    installed.sort();
    rows.extend(installed);
    if session.json() {
        let rows: Vec<_> = rows
            .iter()
            .map(|(release, source, image)| json!({"release": release, "source": source, "image": image}))
            .collect();
        session.out_json(&rows)?;
        return Ok(Exit::Success);
    }
    if rows.is_empty() {
        terminal::say("no kernels yet: kiln kernel fetch debian");
    }
    for (release, source, image) in rows {
        let release = hostile::line(&release).into_owned();
        let source = paint(Tone::Dim, &format!("{source:<10}"));
        terminal::out_line(&format!("{release:<36} {source} {}", hostile::line(&image)))?;
    }
    Ok(Exit::Success)
}

/// The one fetched kernel of this release, or of this beginning of one.
fn fetched(session: &Session, given: &str) -> Result<kiln_image::kernel::CachedKernel, Failure> {
    let all = cache(session).list().exits(Exit::InfrastructureBroke)?;
    if let Some(kernel) = all.iter().find(|kernel| kernel.release == given) {
        return Ok(kernel.clone());
    }
    let mut begun = all.iter().filter(|kernel| kernel.release.starts_with(given));
    match (begun.next(), begun.next()) {
        (Some(kernel), None) => Ok(kernel.clone()),
        (Some(one), Some(other)) => Err(Failure::new(
            Exit::Usage,
            format!("{given:?} names more than one kernel: {}, {}", one.release, other.release),
        )
        .hint("kiln kernel ls")),
        (None, _) => Err(Failure::new(Exit::Usage, format!("no kernel {given:?} was fetched"))
            .hint("kiln kernel ls")),
    }
}

fn remove(session: &Session, args: &KernelNameArgs) -> Result<Exit, Failure> {
    let kernel = fetched(session, &args.release)?;
    cache(session).remove(&kernel.release).exits(Exit::InfrastructureBroke)?;
    if session.json() {
        session.out_json(&json!({"removed": kernel.release, "path": kernel.path}))?;
    } else {
        terminal::out_line(&format!("removed {}", kernel.path.display()))?;
    }
    Ok(Exit::Success)
}

fn path(session: &Session, args: &KernelNameArgs) -> Result<Exit, Failure> {
    // Not only fetched ones: whatever `--kernel` would take.
    let kernel = chosen(session, Some(&args.release))?;
    if session.json() {
        session.out_json(&json!({
            "release": kernel.release,
            "digest": kernel.digest,
            "image": kernel.image,
            "modules": kernel.modules,
            "source": kernel.source.word(),
        }))?;
    } else {
        terminal::out_line(&kernel.image.display().to_string())?;
    }
    Ok(Exit::Success)
}
