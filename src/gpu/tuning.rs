//! What autotuning found, kept in a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::device::AdapterCaps;
use super::shader::{PipelineKey, Tile};

/// A file that keeps what [`Gpu::autotune`](super::Gpu::autotune) found, for every adapter and driver. What another version of
/// the crate or another driver found is not used, and goes when the file is written next.
///
/// The file is replaced whole, by one process at a time: whatever ends a process, and however many share the file,
/// it holds what was last written to it.
///
/// ```
/// use local_attention::gpu::TuningCache;
///
/// // Nothing is read or written before there is something to keep.
/// let cache = TuningCache::at("/tmp/tuning.tsv");
/// assert_eq!(cache.path().extension().unwrap(), "tsv");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuningCache {
    path: PathBuf,
}

/// What a choice is for, and the choice: a line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) adapter: String,
    pub(super) driver: String,
    /// The kernel, but for its tile or matrices.
    pub(super) kernel: String,
    pub(super) geometry: String,
    pub(super) variant: Variant,
}

/// What there is to choose among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Tile(Tile),
    /// Matrix units.
    Matrix,
}

impl Variant {
    /// That of a kernel.
    pub(super) fn of(key: &PipelineKey) -> Self {
        if key.matrix.is_some() { Self::Matrix } else { Self::Tile(key.tile) }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tile(tile) => tile.name(),
            Self::Matrix => "matrix",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = Tile::ALL.into_iter().map(Self::Tile).chain([Self::Matrix]);
        all.into_iter().find(|variant| variant.name() == name)
    }
}

/// The first line of a file of this version.
const HEADER: &str = concat!("local-attention ", env!("CARGO_PKG_VERSION"), " tuning");

impl TuningCache {
    /// `local-attention/tuning.tsv` in the user's cache directory; none where the system has no such directory.
    pub fn user() -> Option<Self> {
        use etcetera::BaseStrategy;
        let base = etcetera::base_strategy::choose_native_strategy().ok()?;
        Some(Self::at(base.cache_dir().join("local-attention/tuning.tsv")))
    }

    /// A file of the caller's choice; its directory is made when there is something to keep.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the file is, or will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All choices of this version; none where there is no file. What is no choice is left out.
    pub(super) fn read(&self) -> io::Result<Vec<Choice>> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(parse(&String::from_utf8_lossy(&bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Adds a choice, in the place of an earlier one and of those of other drivers of the adapter.
    pub(super) fn add(&self, choice: &Choice) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let beside = |suffix: &str| {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        // Whoever holds the lock is the only one to write; the system lets go of it when a process ends.
        let lock = File::create(beside(".lock"))?;
        lock.lock()?;
        let mut all = self.read()?;
        all.retain(|other| {
            let same = other.kernel == choice.kernel && other.geometry == choice.geometry;
            other.adapter != choice.adapter || other.driver == choice.driver && !same
        });
        all.push(choice.clone());
        let new = beside(".new");
        let mut file = File::create(&new)?;
        writeln!(file, "{HEADER}")?;
        for Choice { adapter, driver, kernel, geometry, variant } in &all {
            writeln!(file, "{adapter}\t{driver}\t{kernel}\t{geometry}\t{}", variant.name())?;
        }
        file.sync_all()?;
        fs::rename(new, &self.path)
    }
}

fn parse(text: &str) -> Vec<Choice> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Vec::new();
    }
    let choice = |line: &str| {
        let fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
        let [adapter, driver, kernel, geometry, variant] = <[String; 5]>::try_from(fields).ok()?;
        let variant = Variant::named(&variant)?;
        Some(Choice { adapter, driver, kernel, geometry, variant })
    };
    lines.filter_map(choice).collect()
}

/// The adapter and its driver, as the file names them.
pub(super) fn names(caps: &AdapterCaps) -> [String; 2] {
    let info = &caps.info;
    let adapter =
        format!("{} {:04x}:{:04x} {:?}", info.name, info.vendor, info.device, info.backend);
    let driver = format!("{} {}", info.driver, info.driver_info);
    [adapter, driver].map(|name| name.replace(char::is_control, " ").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(geometry: &str, tile: Tile) -> Choice {
        let [adapter, driver] = ["a GPU", "1.0"].map(str::to_owned);
        let kernel = "forward-f32-d64".to_owned();
        let (geometry, variant) = (geometry.to_owned(), Variant::Tile(tile));
        Choice { adapter, driver, kernel, geometry, variant }
    }

    #[test]
    fn a_choice_takes_the_place_of_its_forerunners() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TuningCache::at(folder.path().join("deep/er/tuning.tsv"));
        assert_eq!(cache.read().unwrap(), []);
        let (one, two) = (choice("n 1", Tile::Small), choice("n 2", Tile::Large));
        cache.add(&one).unwrap();
        cache.add(&two).unwrap();
        let changed = Choice { variant: Variant::Matrix, ..one.clone() };
        cache.add(&changed).unwrap();
        assert_eq!(cache.read().unwrap(), [two, changed.clone()]);
        let other = Choice { adapter: "another GPU".to_owned(), ..one.clone() };
        cache.add(&other).unwrap();
        // A new driver: what the old one's kernels took says nothing.
        let newer = Choice { driver: "1.1".to_owned(), ..one };
        cache.add(&newer).unwrap();
        assert_eq!(cache.read().unwrap(), [other, newer]);
    }

    #[test]
    fn what_is_no_choice_of_this_version_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TuningCache::at(folder.path().join("tuning.tsv"));
        let one = choice("n 1", Tile::Short);
        cache.add(&one).unwrap();
        let whole = fs::read(cache.path()).unwrap();
        // However much of it a system that went down had written.
        for len in 0..whole.len() {
            fs::write(cache.path(), &whole[..len]).unwrap();
            let read = cache.read().unwrap();
            // But for the last byte, which ends the line.
            assert!(read.is_empty() || len + 1 == whole.len() && read == [one.clone()], "{len}");
        }
        let text = String::from_utf8(whole).unwrap();
        for (from, to) in [
            (env!("CARGO_PKG_VERSION"), "0.0.0"),
            ("\tshort", "\tenormous"),
            ("\tshort", "\tshort\tand more"),
            ("local-attention", "\u{fffd}"),
        ] {
            fs::write(cache.path(), text.replace(from, to)).unwrap();
            assert_eq!(cache.read().unwrap(), [], "{to}");
        }
        fs::write(cache.path(), [0xff, 0xfe, 0, b'\n', 0x80]).unwrap();
        assert_eq!(cache.read().unwrap(), []);
        cache.add(&one).unwrap();
        assert_eq!(cache.read().unwrap(), [one]);
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TuningCache::at(folder.path().join("tuning.tsv"));
        let (writers, each) = (4, 25);
        std::thread::scope(|scope| {
            for writer in 0..writers {
                let cache = cache.clone();
                scope.spawn(move || {
                    for i in 0..each {
                        cache.add(&choice(&format!("{writer} {i}"), Tile::Small)).unwrap();
                        // A reader never sees a part of it.
                        assert!(!cache.read().unwrap().is_empty());
                    }
                });
            }
        });
        assert_eq!(cache.read().unwrap().len(), writers * each);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(TuningCache::at(file.join("tuning.tsv")).add(&choice("n", Tile::Small)).is_err());
    }
}
