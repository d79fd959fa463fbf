//! Images wherever they are: layers in files, configurations, and images in registries, opened alike.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_block::{BlockDevice, ReadOnly};
use kiln_overlaybd::{Config, Image, Input, Layer, LayerError, LowerConfig, OpenOptions, Upper};
use kiln_registry::{
    Access, Cache, Credentials, Descriptor, LazyOptions, Notice, Platform, Reader, Reference,
    RegistryError, Repository, Stop, overlaybd,
};

use super::refused;
use super::traces::{Ahead, Brought, Recording};
use crate::arguments::{LayerImageArgs, RegistryArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;
use crate::{hostile, terminal};

/// What a registry's refusal means for the process.
pub(super) fn unreached(error: RegistryError) -> Failure {
    let exit = match &error {
        RegistryError::Reference(_)
        | RegistryError::Missing { .. }
        | RegistryError::Unsupported { .. }
        | RegistryError::Io { act: "open", .. } => Exit::Usage,
        RegistryError::Denied { .. } | RegistryError::Credentials { .. } => Exit::Setup,
        RegistryError::WrongBytes { .. } => Exit::Unsound,
        RegistryError::Stopped => Exit::Interrupted,
        _ => Exit::InfrastructureBroke,
    };
    let is_silent =
        matches!(&error, RegistryError::Unreachable { url, .. } if url.starts_with("https:"));
    let failure = Failure::from(error).with_exit(exit);
    match is_silent {
        true => failure.hint("a registry without TLS takes --plain-http"),
        false => failure,
    }
}

/// Who we are to registries, and how they are reached.
pub(super) fn access(session: &Session, args: &RegistryArgs) -> Access {
    let files = match &args.auth_file {
        Some(file) => vec![session.folder.join(file)],
        None => Credentials::usual_files(|name| std::env::var_os(name).map(PathBuf::from)),
    };
    Access {
        credentials: Credentials::in_files(files),
        plain_http: args.plain_http,
        ..Access::default()
    }
}

/// An image, open.
pub(super) struct Opened {
    /// The disk.
    pub(super) disk: Arc<dyn BlockDevice>,
    /// What it is called, in one word.
    pub(super) name: String,
    /// Its layers that are in a registry.
    readers: Vec<Reader>,
    /// What is fetched before anybody asks.
    _ahead: Option<Ahead>,
    recording: Option<Recording>,
}

impl Opened {
    /// Writes down what was read, where that is wanted.
    pub(super) fn keep_trace(&self) -> Result<(), Failure> {
        self.recording.as_ref().map_or(Ok(()), Recording::keep)
    }

    /// Fetches everything that is missing, on a thread of its own.
    pub(super) fn download(&self) {
        let readers = self.readers.clone();
        let work = move || {
            for reader in readers {
                if let Err(error) = reader.complete() {
                    say(&format!("warning: the download ended early: {error}"));
                }
            }
        };
        // Without a thread, what is needed is fetched when it is needed.
        let _ = std::thread::Builder::new().name("download".to_owned()).spawn(work);
    }
}

fn say(text: &str) {
    terminal::say(&hostile::line(text));
}

/// What was named on the command line.
enum Named {
    Config(PathBuf),
    Layers(Vec<PathBuf>),
    Remote(Reference),
}

/// Ends the opening of an image, and nothing after that: a disk that is used has to be read until it is not.
#[derive(Clone, Default)]
pub(super) struct Opening {
    stop: Stop,
    is_over: Arc<AtomicBool>,
}

impl Opening {
    /// Somebody wants an end.
    pub(super) fn stop(&self) {
        if !self.is_over.load(Ordering::Acquire) {
            self.stop.stop();
        }
    }
}

/// Opens an image, with what is written above it.
pub(super) fn open(
    session: &Session,
    args: &LayerImageArgs,
    opening: &Opening,
) -> Result<Opened, Failure> {
    let upper = || -> Result<Option<Upper>, Failure> {
        let Some(data) = args.upper.as_ref().filter(|_| !args.read_only) else { return Ok(None) };
        let index = args.upper_index.as_ref().map(|index| session.folder.join(index));
        let opened = Upper::open(&session.folder.join(data), index.as_deref());
        let opened = opened.map_err(|error| {
            let hint = match &error {
                LayerError::Refused(why) if why.ends_with("needs its index file") => {
                    "add --upper-index INDEX"
                }
                _ => "kiln layer create makes an upper; without --size it takes the image's",
            };
            refused(error).hint(hint)
        });
        opened.map(Some)
    };
    let given = args.trace.as_ref().map(|path| Brought::of_file(&session.folder.join(path)));
    let given = given.transpose()?;
    let (options, readers) = (OpenOptions::default(), Vec::new());
    let mut source = Source { session, args, stop: &opening.stop, options, readers, brought: None };
    let (layers, upper, name) = match named(session, &args.image)? {
        Named::Layers(paths) => {
            let layers = paths.iter().map(|path| {
                Input::open(path).and_then(|input| Layer::open(input, &source.options))
            });
            let layers = layers.collect::<Result<_, _>>().map_err(refused)?;
            (layers, upper()?, file_name(&paths[paths.len() - 1]))
        }
        Named::Config(path) => {
            let config = Config::load(&path).map_err(refused)?;
            let folder = super::output::folder_of(&path);
            let layers = source.of_config(&config, folder)?;
            source.brought = config.trace.as_ref().and_then(|trace| {
                let path = folder.join(trace);
                path.exists().then(|| Brought::of_file(&path).ok()).flatten()
            });
            let own = config.upper.as_ref().filter(|_| !args.read_only && args.upper.is_none());
            let own = own.map(|upper| upper.open(folder)).transpose().map_err(refused)?;
            let upper = if own.is_some() { own } else { upper()? };
            (layers, upper, file_name(folder))
        }
        Named::Remote(reference) => {
            let layers = source.of_registry(&reference)?;
            let name = reference.repository().rsplit('/').next().unwrap_or("image").to_owned();
            (layers, upper()?, name)
        }
    };
    let image = Image::of(layers, upper).map_err(refused)?;
    for mismatch in image.stack().map(|stack| stack.chain_mismatches()).unwrap_or_default() {
        say(&format!("warning: {mismatch}"));
    }
    let trace = match &given {
        Some(given) => Some(given.read(image.stack())?),
        None => source.brought.as_ref().and_then(|brought| brought.try_read(image.stack())),
    };
    let disk = image.into_device();
    let recording = args.record_trace.as_ref().map(|path| {
        // What is fetched ahead is not what was read.
        Recording::begin(Arc::clone(&disk), session.folder.join(path))
    });
    let recording = recording.transpose()?;
    let ahead = trace.filter(|trace| !trace.is_empty());
    let ahead = ahead.map(|trace| Ahead::start(trace, Arc::clone(&disk)));
    let disk = recording.as_ref().map_or(disk, Recording::disk);
    opening.is_over.store(true, Ordering::Release);
    Ok(Opened { disk, name, readers: source.readers, _ahead: ahead, recording })
}

fn file_name(path: &Path) -> String {
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "image".to_owned())
}

fn named(session: &Session, words: &[String]) -> Result<Named, Failure> {
    let paths: Vec<PathBuf> = words.iter().map(|word| session.folder.join(word)).collect();
    if let ([word], [path]) = (words, &paths[..]) {
        if !path.exists() {
            return match word.parse() {
                // A single word is rather a file that is not there.
                Ok(reference) if word.contains(['/', ':']) => Ok(Named::Remote(reference)),
                _ => Err(Failure::new(
                    Exit::Usage,
                    format!("{word:?} is neither a file nor an image of a registry"),
                )
                .hint("an image is HOST/NAME:TAG, such as localhost:5000/disks/root:1")),
            };
        }
        let mut first = [0];
        if File::open(path).and_then(|mut file| file.read(&mut first)).is_ok() && first == *b"{" {
            return Ok(Named::Config(path.clone()));
        }
    }
    Ok(Named::Layers(paths))
}

/// Opens layers.
struct Source<'a> {
    session: &'a Session,
    args: &'a LayerImageArgs,
    stop: &'a Stop,
    options: OpenOptions,
    readers: Vec<Reader>,
    /// A trace that came with the image.
    brought: Option<Brought>,
}

impl Source<'_> {
    fn access(&self) -> Access {
        let mut access = access(self.session, &self.args.registry);
        access.options.stop = self.stop.clone();
        access
    }

    fn of_registry(&mut self, reference: &Reference) -> Result<Vec<Layer>, Failure> {
        let access = self.access();
        let repository = Arc::new(Repository::new(reference, &access).map_err(unreached)?);
        let (_, image) = repository.image(reference, &Platform::here()).map_err(unreached)?;
        let blobs = overlaybd::layers(reference, &image).map_err(unreached)?;
        let trace = overlaybd::trace(&image).filter(|_| self.args.trace.is_none());
        std::thread::scope(|scope| {
            let fetching = trace.map(|trace| {
                let repository = &repository;
                scope.spawn(move || Brought::of_blob(repository, trace))
            });
            let layers = self.of_blobs(&repository, blobs);
            self.brought = fetching.and_then(|thread| thread.join().ok().flatten());
            layers
        })
    }

    fn of_config(&mut self, config: &Config, folder: &Path) -> Result<Vec<Layer>, Failure> {
        let mut blobs = Vec::new();
        let mut repository = None;
        for (digest, size) in config.lowers.iter().filter_map(|lower| lower.blob(folder)) {
            let repository = match &repository {
                Some(repository) => repository,
                None => repository.insert(self.repository_of(&config.repo_blob_url)?),
            };
            let digest = digest
                .parse()
                .map_err(|error| Failure::from(anyhow::Error::new(error)).with_exit(Exit::Usage))?;
            let size = match size {
                Some(size) => size,
                None => {
                    let size = repository.blob_size(&digest).map_err(unreached)?;
                    size.ok_or_else(|| {
                        let text = format!("{digest} is not at {}", config.repo_blob_url);
                        Failure::new(Exit::Usage, text)
                    })?
                }
            };
            blobs.push(overlaybd::layer(digest, size, None));
        }
        let mut fetched = match &repository {
            Some(repository) => self.of_blobs(repository, &blobs)?,
            None => Vec::new(),
        }
        .into_iter();
        let open = |lower: &LowerConfig| match lower.blob(folder) {
            Some((digest, _)) => fetched.next().ok_or_else(|| {
                let what = "it is in a registry and was not fetched".to_owned();
                LayerError::Unsupported { name: digest.to_owned(), what }
            }),
            None => lower.open(folder, &self.options),
        };
        config.lowers.iter().map(open).collect::<Result<_, _>>().map_err(refused)
    }

    /// The repository that a configuration means.
    fn repository_of(&self, url: &str) -> Result<Arc<Repository>, Failure> {
        let wrong = || {
            Failure::new(
                Exit::Usage,
                format!("repoBlobUrl {url:?} is not SCHEME://HOST/v2/NAME/blobs"),
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once("/v2/").ok_or_else(wrong)?;
        let name = path.trim_end_matches('/').strip_suffix("/blobs").ok_or_else(wrong)?;
        let host = if host == "registry-1.docker.io" { "docker.io" } else { host };
        let reference = Reference::new(host, name, "latest");
        let reference = reference.map_err(|error| unreached(error.into()))?;
        let mut access = self.access();
        access.plain_http |= scheme == "http";
        Ok(Arc::new(Repository::new(&reference, &access).map_err(unreached)?))
    }

    /// Opens layers where they are, all at once: each takes several answers of the registry.
    fn of_blobs(
        &mut self,
        repository: &Arc<Repository>,
        blobs: &[Descriptor],
    ) -> Result<Vec<Layer>, Failure> {
        let folder = self.session.home.cache().join("layers");
        let cache = Cache::open(&folder, self.args.cache_limit).map_err(|error| {
            unreached(error).with_exit(Exit::Setup).hint("KILN_HOME moves the cache elsewhere")
        })?;
        let tell = Arc::new(|notice: Notice| say(&format!("warning: {notice}")));
        let patience = LazyOptions::PATIENCE;
        let lazy = LazyOptions { cache: Some(Arc::new(cache)), trace: true, patience, tell };
        let options = &self.options;
        let open = |blob: &Descriptor| open_blob(repository, blob, lazy.clone(), options);
        let mut opened = Vec::new();
        std::thread::scope(|scope| -> Result<(), Failure> {
            // A registry may not like many questions at once.
            for some in blobs.chunks(8) {
                let threads: Vec<_> = some.iter().map(|blob| scope.spawn(|| open(blob))).collect();
                for thread in threads {
                    let found = thread.join().map_err(|_| {
                        Failure::new(Exit::Internal, "a thread that opens a layer panicked")
                    })?;
                    opened.push(found?);
                }
            }
            Ok(())
        })?;
        let (layers, readers): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        self.readers.extend(readers);
        Ok(layers)
    }
}

fn open_blob(
    repository: &Arc<Repository>,
    blob: &Descriptor,
    lazy: LazyOptions,
    options: &OpenOptions,
) -> Result<(Layer, Reader), Failure> {
    let reader = Reader::open(repository, blob, lazy).map_err(unreached)?;
    let name = blob.digest.to_string();
    let open = || Layer::open(Input::new(&name, Arc::new(ReadOnly(reader.clone()))), options);
    let layer = match open() {
        // Fetched as a whole, it can be compared with its digest.
        Err(LayerError::Damaged { .. }) if !reader.is_whole() => {
            reader.complete().map_err(unreached)?;
            open()
        }
        opened => opened,
    };
    let layer = layer.map_err(refused)?;
    let is_covered = layer.zfile().is_some_and(|zfile| zfile.is_covered());
    if !is_covered && !reader.is_whole() {
        say(&format!(
            "note: {name} has no checksums of its own, so it is fetched as a whole first"
        ));
        reader.complete().map_err(unreached)?;
        // Its index was read before anything was known of it.
        return open().map(|layer| (layer, reader)).map_err(refused);
    }
    Ok((layer, reader))
}
