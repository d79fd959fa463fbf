//! `kiln disk import`, `export`, `verify` and `repair`: disks and files.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use kiln_block::{ByteLen, FileDevice};
use kiln_overlaybd::LayerError;
use kiln_qcow2::Qcow2Error;
use kiln_qcow2::chain::{self, Allow, Link};
use kiln_registry::{Reference, RegistryError};
use kiln_store::{
    BackingImage, Compression, Format, LayerCodec, LayerForm, LayeredBase, LayeredError, Progress,
    Range, Reply, Request, Stop, Store, contents::BLOCK,
};
use serde_json::json;
use tempfile::NamedTempFile;

use super::{out_ranges, pool, stream};
use crate::arguments::{
    Backing, DiskExportArgs, DiskImportArgs, DiskVerifyArgs, ImageCompression, ImageFormat,
};
use crate::commands::layer;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::{hostile, signals, terminal};

/// Stopped by Ctrl-C or a signal: whoever copies has something to clean up first.
fn listen() -> Result<Stop, Failure> {
    let stop = Stop::new();
    let heard = stop.clone();
    signals::when_told_to_end(move || heard.stop())?;
    Ok(stop)
}

/// A bar on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    if !terminal::is_live() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:20} {bytes} of {total_bytes} {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("━━ "))
}

/// Asks something that takes its time, with a bar.
pub(super) fn ask(store: &Store, request: Request, files: Vec<File>) -> Result<Reply, Failure> {
    let stop = listen()?;
    let bar = bar();
    let mut seen = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let files = files.into_iter().map(Into::into).collect();
    let asked = store.ask_with(request, files, &mut seen, &stop);
    bar.finish_and_clear();
    asked.map_err(|error| pool::explained(store, error))
}

/// A file that takes its place once it is complete; whoever looked at the old one keeps it.
pub(super) struct Output {
    file: NamedTempFile,
    path: PathBuf,
}

impl Output {
    pub(super) fn beside(path: &Path) -> Result<Output, Failure> {
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let text = format!("{} is not a regular file", path.display());
            return Err(Failure::new(Exit::Usage, text).hint("write to a file, and copy that"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            .prefix(".kiln-disk-")
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .tried(|| format!("cannot write {}", path.display()))
            .exits(Exit::Setup)?;
        Ok(Output { file, path: path.to_owned() })
    }

    /// The file, for somebody else to write to.
    pub(super) fn file(&self) -> Result<File, Failure> {
        let file = self.file.as_file().try_clone();
        file.tried(|| format!("cannot write {}", self.path.display())).exits(Exit::Setup)
    }

    pub(super) fn persist(self) -> Result<(), Failure> {
        let tried = || format!("cannot write {}", self.path.display());
        self.file.persist(&self.path).tried(tried).exits(Exit::Setup)?;
        Ok(())
    }
}

/// Opens an image and the files below it. They are opened here, by who may, and go to the owner as they are.
fn chain(args: &DiskImportArgs) -> Result<Vec<Link>, Failure> {
    let allow = match args.backing {
        Backing::No => Allow::Nothing,
        Backing::Beside => Allow::Beside,
        Backing::Any => Allow::Anything,
    };
    let format = args.from_format.map(|format| match format {
        ImageFormat::Raw => chain::Format::Raw,
        ImageFormat::Qcow2 => chain::Format::Qcow2,
    });
    chain::find(&args.source, format, allow).map_err(|error| {
        let elsewhere = matches!(error, Qcow2Error::Backing { .. }) && allow != Allow::Anything;
        let failure = Failure::from(error).with_exit(Exit::Usage);
        match elsewhere {
            true => {
                failure.hint("--backing any reads any file that you may; mind who made the image")
            }
            false => failure,
        }
    })
}

fn format_of(format: chain::Format) -> Format {
    match format {
        chain::Format::Raw => Format::Raw,
        chain::Format::Qcow2 => Format::Qcow2,
    }
}

/// Opens an image to read, having looked that it can be one.
fn image(path: &Path) -> Result<File, Failure> {
    FileDevice::open(path, true).exits(Exit::Usage)?;
    File::open(path).tried(|| format!("cannot open disk {}", path.display())).exits(Exit::Usage)
}

/// What a disk on an image is made on: a configuration, a layer, or an image of a registry.
fn layered(session: &Session, args: &DiskImportArgs) -> Result<LayeredBase, Failure> {
    let auth_file = args.auth_file.as_ref().map(|file| session.folder.join(file));
    let path = session.folder.join(&args.source);
    let opened = if path.exists() {
        let mut first = [0];
        let read = File::open(&path).and_then(|mut file| file.read(&mut first));
        match read.is_ok() && first == *b"{" {
            true => LayeredBase::of_config(&path, auth_file, args.plain_http),
            false => LayeredBase::of_files(&[path]),
        }
    } else {
        let word = args.source.to_string_lossy();
        let reference: Option<Reference> = word.parse().ok();
        // A single word is rather a file that is not there.
        let Some(reference) = reference.filter(|_| word.contains(['/', ':'])) else {
            let text = format!("{word:?} is neither a file nor an image of a registry");
            let hint = "an image is HOST/NAME:TAG, such as localhost:5000/disks/root:1";
            return Err(Failure::new(Exit::Usage, text).hint(hint));
        };
        LayeredBase::of_image(&reference, args.plain_http, auth_file)
    };
    opened.map_err(unusable)
}

/// What it means that disks cannot be made on an image.
fn unusable(error: LayeredError) -> Failure {
    use RegistryError as No;
    let exit = match &error {
        LayeredError::Registry(No::Denied { .. } | No::Credentials { .. }) => Exit::Setup,
        LayeredError::Registry(No::Reference(_) | No::Missing { .. } | No::Unsupported { .. }) => {
            Exit::Usage
        }
        LayeredError::Registry(No::WrongBytes { .. }) => Exit::Unsound,
        LayeredError::Registry(_) => Exit::InfrastructureBroke,
        LayeredError::Layer(LayerError::Damaged { .. }) => Exit::Unsound,
        _ => Exit::Usage,
    };
    let is_silent = matches!(error, LayeredError::Registry(No::Unreachable { .. }));
    let failure = Failure::from(anyhow::Error::new(error)).with_exit(exit);
    match is_silent {
        true => failure.hint("a registry without TLS takes --plain-http"),
        false => failure,
    }
}

/// `kiln disk import --lazy`
fn import_lazy(session: &Session, path: &Path, args: &DiskImportArgs) -> Result<Exit, Failure> {
    let name = pool::disk(&args.name)?;
    let base = layered(session, args)?;
    pool::make(path)?;
    let store = pool::owner(session, path)?;
    let image = args.source.to_string_lossy().into_owned();
    let request = Request::ImportLazy { name: name.to_owned(), image: image.clone(), base };
    let reply = ask(&store, request, Vec::new())?;
    let Reply::Copied { size, .. } = reply else {
        return Err(pool::unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({"name": name, "size": size, "base": image}))?;
    } else {
        let (name, size, image) = (hostile::line(name), ByteLen::new(size), hostile::line(&image));
        terminal::out_line(&format!("made {name}, {size}, on {image}, which has to stay"))?;
    }
    Ok(Exit::Success)
}

/// `kiln disk flatten`
pub(super) fn flatten(session: &Session, path: &Path, name: &str) -> Result<Exit, Failure> {
    let name = pool::disk(name)?;
    let store = pool::owner(session, path)?;
    let reply = ask(&store, Request::Flatten { disk: name.to_owned() }, Vec::new())?;
    let Reply::Copied { size, written, .. } = reply else {
        return Err(pool::unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({"name": name, "size": size, "written": written}))?;
    } else {
        let (name, written) = (hostile::line(name), ByteLen::new(written));
        terminal::out_line(&format!("{name} needs no image any more; {written} were copied"))?;
    }
    Ok(Exit::Success)
}

/// `kiln disk import`
pub(super) fn import(
    session: &Session,
    path: &Path,
    args: &DiskImportArgs,
) -> Result<Exit, Failure> {
    if args.lazy {
        return import_lazy(session, path, args);
    }
    let name = pool::disk(&args.name)?;
    let mut files = Vec::new();
    let mut backing = Vec::new();
    for link in chain(args)? {
        files.push(link.file);
        let (file, format) = (link.path.display().to_string(), format_of(link.format));
        backing.push(BackingImage { file, format });
    }
    let BackingImage { file, format } = backing.remove(0);
    pool::make(path)?;
    let store = pool::owner(session, path)?;
    let request = Request::Import {
        name: name.to_owned(),
        format: Some(format),
        file,
        backing,
        snapshot: args.snapshot.clone(),
    };
    let reply = ask(&store, request, files)?;
    let Reply::Copied { size, source_size, written } = reply else {
        return Err(pool::unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({
            "name": name, "size": size, "source_size": source_size, "written": written,
        }))?;
    } else {
        let (name, size, written) =
            (hostile::line(name), ByteLen::new(size), ByteLen::new(written));
        terminal::out_line(&format!("imported {name}, {size}, of which {written} take space"))?;
    }
    Ok(Exit::Success)
}

/// `kiln disk export`
pub(super) fn export(
    session: &Session,
    path: &Path,
    args: &DiskExportArgs,
) -> Result<Exit, Failure> {
    if args.layer {
        return export_layer(session, path, args);
    }
    let pipe = args.file.as_os_str() == "-";
    let named_qcow2 =
        args.file.extension().is_some_and(|found| found.eq_ignore_ascii_case("qcow2"));
    let format = match args.to_format {
        Some(ImageFormat::Raw) => Format::Raw,
        Some(ImageFormat::Qcow2) => Format::Qcow2,
        None if named_qcow2 => Format::Qcow2,
        None => Format::Raw,
    };
    let compress = args.compress.map(|how| match how {
        ImageCompression::Zstd => Compression::Zstd,
        ImageCompression::Deflate => Compression::Deflate,
    });
    let output = if pipe { None } else { Some(Output::beside(&args.file)?) };
    let (file, shown) = match &output {
        Some(output) => (output.file()?, args.file.display().to_string()),
        None => (stream::stdout("an image", "kiln disk export NAME FILE")?, "stdout".to_owned()),
    };
    let store = pool::owner(session, path)?;
    let name = args.name.clone();
    let request = Request::Export { name, format, file: shown.clone(), compress, pipe };
    let reply = ask(&store, request, vec![file])?;
    let Reply::Copied { size, written, .. } = reply else {
        return Err(pool::unexpected(&reply));
    };
    let Some(output) = output else { return Ok(Exit::Success) };
    output.persist()?;
    if session.json() {
        session.out_json(&json!({
            "name": args.name, "path": args.file, "size": size, "written": written,
        }))?;
    } else {
        terminal::out_line(&shown)?;
    }
    Ok(Exit::Success)
}

/// `kiln disk export --layer`
fn export_layer(session: &Session, path: &Path, args: &DiskExportArgs) -> Result<Exit, Failure> {
    let slip = |text: &str| Failure::new(Exit::Usage, text);
    if args.file.as_os_str() == "-" {
        return Err(slip("a layer cannot be written to a pipe").hint("name a file"));
    }
    let compress = match args.compress {
        None => LayerCodec::Lz4,
        Some(ImageCompression::Zstd) => LayerCodec::Zstd,
        Some(ImageCompression::Deflate) => {
            return Err(slip("a layer is not compressed with deflate").hint("--compress zstd"));
        }
    };
    let uuid = args.uuid.map_or_else(layer::random, Ok)?.to_string();
    let form = LayerForm {
        compress: Some(compress),
        tar: args.tar,
        uuid: Some(uuid.clone()),
        parent: args.parent.map(|parent| parent.to_string()),
    };
    let output = Output::beside(&args.file)?;
    let shown = args.file.display().to_string();
    let store = pool::owner(session, path)?;
    let (name, from, file) = (args.name.clone(), args.from.clone(), shown.clone());
    let request = Request::ExportLayer { name, from, file, form };
    let reply = ask(&store, request, vec![output.file()?])?;
    let Reply::Copied { size, written, .. } = reply else {
        return Err(pool::unexpected(&reply));
    };
    output.persist()?;
    if session.json() {
        session.out_json(&json!({
            "name": args.name, "path": args.file, "size": size, "written": written, "uuid": uuid,
        }))?;
    } else {
        terminal::out_line(&shown)?;
    }
    Ok(Exit::Success)
}

/// `kiln disk verify`
pub(super) fn verify(
    session: &Session,
    path: &Path,
    args: &DiskVerifyArgs,
) -> Result<Exit, Failure> {
    let (Some(name), Some(file)) = (&args.name, &args.file) else {
        return sound(session, &pool::owner(session, path)?, !args.maps);
    };
    let other = image(file)?;
    let store = pool::owner(session, path)?;
    let shown = file.display().to_string();
    let request = Request::Compare { name: name.clone(), file: shown.clone() };
    let reply = ask(&store, request, vec![other])?;
    let Reply::Compared { size, file_size, ranges } = reply else {
        return Err(pool::unexpected(&reply));
    };
    same(session, (name, size), (&shown, file_size), &ranges)
}

/// Tells how a disk and a file differ.
fn same(
    session: &Session,
    (name, size): (&str, u64),
    (file, file_size): (&str, u64),
    ranges: &[Range],
) -> Result<Exit, Failure> {
    // A file that is no whole number of blocks was filled with zeros.
    let longer = size != file_size.next_multiple_of(BLOCK);
    let same = ranges.is_empty() && !longer;
    if session.json() {
        session.out_json(&json!({
            "same": same, "size": size, "file_size": file_size,
            "differences": super::ranges_json(ranges),
        }))?;
    } else {
        out_ranges(ranges)?;
        if longer {
            let (size, file_size) = (ByteLen::new(size), ByteLen::new(file_size));
            terminal::say(&format!("{} has {size}, {file} has {file_size}", hostile::line(name)));
        }
    }
    Ok(if same { Exit::Success } else { Exit::Unsound })
}

/// Looks whether the pool is whole, and says what is not.
pub(super) fn sound(session: &Session, store: &Store, data: bool) -> Result<Exit, Failure> {
    let reply = pool::ask(store, Request::Verify { data })?;
    let Reply::Verified { nodes, data_blocks, problems } = reply else {
        return Err(pool::unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({
            "clean": problems.is_empty(), "nodes": nodes, "data_blocks": data_blocks,
            "problems": problems,
        }))?;
    } else {
        for problem in &problems {
            terminal::out_line(&hostile::line(problem))?;
        }
        let found = match problems.len() {
            0 => "nothing wrong".to_owned(),
            count => format!("{count} problems"),
        };
        let data = ByteLen::new(data_blocks.saturating_mul(BLOCK));
        terminal::out_line(&format!("{found}: {nodes} parts of maps, {data} of data"))?;
    }
    if problems.is_empty() {
        return Ok(Exit::Success);
    }
    terminal::say(
        "hint: kiln disk repair mends what is wrong with the free map; for damaged data, use a copy",
    );
    Ok(Exit::Unsound)
}
