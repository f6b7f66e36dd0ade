//! Images without labels, as somebody names them: files, folders, archives and patterns.
//!
//! A list is a data set of one half without classes, so the loader that feeds training prepares its images too.
//! Unlike in training, an image that cannot be read costs itself only: it is a blank image in its batch, and
//! [`ImageList::take_problem`] says why.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sdlora_image::{Image, ImageReading, Transform, is_image, other_ending};

use crate::cache::Cache;
use crate::dataset::{Dataset, Group, Sample, SampleIdx};
use crate::error::DataError;
use crate::files::{Files, MAX_FILES, is_litter, open_file, open_image, place_of};
use crate::loader::{Loader, LoaderConfig};
use crate::source::ImageSource;
use crate::split::Split;
use crate::task::{LabelledSample, SampleSet};

/// Deepest accepted nesting of folders, as for data sets.
const MAX_DEPTH: usize = 32;

/// An image of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Path of its file, or of the archive that holds it.
    pub path: PathBuf,
    /// Its name in the archive, with `/` between the parts.
    pub member: Option<String>,
}

impl NamedImage {
    fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            member: None,
        }
    }

    /// Path of the file; of the member of an archive, as if the archive were a folder.
    pub fn full_path(&self) -> PathBuf {
        match &self.member {
            None => self.path.clone(),
            Some(member) => self.path.join(member),
        }
    }
}

/// Where the bytes of an image are.
#[derive(Clone, Copy, Debug)]
enum Bytes {
    /// In a file of its own.
    Own,
    /// In an archive.
    Member { archive: usize, idx: usize },
    /// Nowhere; the problem is known.
    Nowhere,
}

/// Images to read, in the order in which they were named; those of a folder or archive in the order of their names.
pub struct ImageList {
    images: Vec<NamedImage>,
    bytes: Vec<Bytes>,
    archives: Vec<Files>,
    reading: ImageReading,
    /// Samples of the data set that this is.
    samples: Vec<Sample>,
    n_others: usize,
    /// By position; each until somebody takes it.
    problems: Mutex<BTreeMap<usize, DataError>>,
}

impl ImageList {
    /// Lists the images of `inputs`: an image file, a folder with all that is in it, a zip, tar or tar.gz, or, where
    /// there is no such file, a pattern with `*`, `?`, `[...]` or `**`.
    ///
    /// Nothing is an error here: an input that cannot be listed, or holds no image, is one image of the list with a
    /// problem. In a folder or archive, the ending of a name says what is an image; hidden files are left out.
    pub fn new(inputs: impl IntoIterator<Item = PathBuf>, reading: ImageReading) -> Self {
        let mut list = Self {
            images: Vec::new(),
            bytes: Vec::new(),
            archives: Vec::new(),
            reading,
            samples: Vec::new(),
            n_others: 0,
            problems: Mutex::default(),
        };
        for input in inputs {
            list.add(&input);
        }
        let names = list
            .images
            .iter()
            .map(|image| image.full_path().display().to_string());
        list.samples = names.map(|name| Sample { class_id: 0, name }).collect();
        list
    }

    /// The images.
    pub fn images(&self) -> &[NamedImage] {
        &self.images
    }

    /// Files in folders and archives that are no images by the endings of their names.
    pub fn n_others(&self) -> usize {
        self.n_others
    }

    /// Why the image at a position could not be read, once it was tried; each is given once.
    pub fn take_problem(&self, position: usize) -> Option<DataError> {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.remove(&position)
    }

    /// A loader of all images in their order, none of them kept. Its batches never fail on an image.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] for a batch size of 0.
    pub fn loader(
        self: &Arc<Self>,
        transform: Transform,
        batch_size: usize,
    ) -> Result<Loader, DataError> {
        let samples = 0..self.images.len();
        let set = SampleSet {
            task_idx: 0,
            split: Split::Test,
            samples: samples
                .map(|idx| LabelledSample { idx, label: 0 })
                .collect(),
            appearance: Vec::new(),
            first_tasks: Arc::new([0]),
            parts: Arc::new([]),
        };
        let source = ImageSource::new(self.clone(), &set, transform, Cache::None);
        LoaderConfig::evaluation(batch_size).init(Arc::new(source), 0)
    }

    fn add(&mut self, input: &Path) {
        match std::fs::metadata(input) {
            Ok(metadata) if metadata.is_dir() => self.add_folder(input),
            Ok(metadata) if metadata.is_file() => match is_archive(input) {
                Ok(true) => self.add_archive(input),
                Ok(false) => self.push(NamedImage::file(input), Bytes::Own),
                Err(error) => self.fail(input, error),
            },
            // What is wrong with a device or a missing file is said where images are read.
            Ok(_) => self.push(NamedImage::file(input), Bytes::Own),
            Err(_) => match pattern_of(input) {
                Some(pattern) => self.add_pattern(input, pattern),
                None => self.push(NamedImage::file(input), Bytes::Own),
            },
        }
    }

    fn push(&mut self, image: NamedImage, bytes: Bytes) {
        self.images.push(image);
        self.bytes.push(bytes);
    }

    /// Adds something that cannot be read, with the reason.
    fn fail(&mut self, path: &Path, error: DataError) {
        self.note_problem(self.images.len(), error);
        self.push(NamedImage::file(path), Bytes::Nowhere);
    }

    fn note_problem(&self, position: usize, error: DataError) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.insert(position, error);
    }

    fn add_pattern(&mut self, input: &Path, pattern: &str) {
        let options = glob::MatchOptions {
            require_literal_leading_dot: true,
            require_literal_separator: true,
            ..glob::MatchOptions::new()
        };
        let n_before = self.images.len();
        match glob::glob_with(pattern, options) {
            Ok(paths) => {
                for path in paths {
                    match path {
                        Ok(path) => self.add(&path),
                        Err(error) => {
                            let path = error.path().to_owned();
                            let source = error.into();
                            self.fail(&path.clone(), DataError::Io { path, source });
                        }
                    }
                }
                if self.images.len() == n_before {
                    let action = "check it, and quote it so that the shell leaves it alone";
                    self.fail(
                        input,
                        DataError::content(place_of(input), "matches no file", action),
                    );
                }
            }
            Err(error) => {
                let problem = format!("is neither a file nor a pattern ({error})");
                let action = "check the path";
                self.fail(input, DataError::content(place_of(input), problem, action));
            }
        }
    }

    fn add_folder(&mut self, folder: &Path) {
        let n_before = self.images.len();
        let n_others = self.n_others;
        self.walk(folder, &mut Vec::new());
        if self.images.len() == n_before {
            let problem = match self.n_others - n_others {
                0 => "holds no file".to_owned(),
                n => format!("holds no image ({n} files have other endings)"),
            };
            self.fail(folder, no_image(folder, problem));
        }
    }

    /// Adds the images below a folder; `above` are the real paths of those it lies in.
    fn walk(&mut self, folder: &Path, above: &mut Vec<PathBuf>) {
        let opened = folder.canonicalize().and_then(|real| {
            Ok((
                real,
                std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?,
            ))
        });
        let (real, mut children) = match opened {
            Ok(opened) => opened,
            Err(source) => {
                let path = folder.to_owned();
                return self.fail(folder, DataError::Io { path, source });
            }
        };
        if above.contains(&real) || above.len() > MAX_DEPTH {
            let problem = "is a link to a folder above it, or nested too deep";
            let error = DataError::content(place_of(folder), problem, "remove the link");
            return self.fail(folder, error);
        }
        above.push(real);
        children.sort_by_key(std::fs::DirEntry::file_name);
        for child in children {
            let name = child.file_name();
            let name = name.to_string_lossy();
            if is_litter(&name) {
                continue;
            }
            let path = child.path();
            // Follows links; of a broken one only the name says what it was.
            if path.is_dir() {
                self.walk(&path, above);
            } else if !is_picture(&name) {
                self.n_others += 1;
            } else if self.images.len() < MAX_FILES {
                self.push(NamedImage::file(path), Bytes::Own);
            } else {
                self.fail(folder, too_many(folder));
                break;
            }
        }
        above.pop();
    }

    fn add_archive(&mut self, path: &Path) {
        let files = match Files::open(path, MAX_FILES) {
            Ok(files) => files,
            Err(error) => return self.fail(path, error),
        };
        let (archive, n_before) = (self.archives.len(), self.images.len());
        for (idx, name) in files.names().enumerate() {
            if !is_picture(name) {
                self.n_others += 1;
                continue;
            }
            let member = Some(name.to_owned());
            let path = path.to_owned();
            self.push(NamedImage { path, member }, Bytes::Member { archive, idx });
        }
        for problem in files.problems() {
            let error = DataError::content(problem.clone(), "is left out", "pack it again");
            self.fail(path, error);
        }
        if self.images.len() == n_before {
            let problem = format!("holds no image ({} files have other endings)", files.len());
            self.fail(path, no_image(path, problem));
        }
        self.archives.push(files);
    }

    fn read(&self, position: usize) -> Result<Image, DataError> {
        match self.bytes.get(position) {
            Some(Bytes::Own) => open_image(&self.images[position].path, self.reading),
            Some(&Bytes::Member { archive, idx }) => {
                let files = &self.archives[archive];
                let bytes = files.read_image(idx)?;
                Ok(Image::decode_as(&bytes, &files.place(idx), self.reading)?)
            }
            // Its problem is known, and stays.
            Some(Bytes::Nowhere) => Ok(blank()?),
            None => Err(DataError::OutOfRange {
                what: "image",
                idx: position,
                len: self.images.len(),
            }),
        }
    }
}

impl Dataset for ImageList {
    fn name(&self) -> &str {
        "images"
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn groups(&self) -> &[Group] {
        &[]
    }

    fn samples(&self, split: Split) -> &[Sample] {
        match split {
            Split::Test => &self.samples,
            Split::Train => &[],
        }
    }

    /// The image; where it cannot be read a blank one, and the problem is kept.
    fn image(&self, _split: Split, idx: SampleIdx) -> Result<Image, DataError> {
        match self.read(idx) {
            Ok(image) => Ok(image),
            Err(error) => {
                self.note_problem(idx, error);
                Ok(blank()?)
            }
        }
    }
}

/// What stands in a batch for an image that cannot be read; nobody sees what becomes of it.
fn blank() -> Result<Image, sdlora_image::ImageError> {
    Image::new(1, 1, 1, vec![0])
}

fn no_image(path: &Path, problem: String) -> DataError {
    let action = "name one with PNG, JPEG, WebP, BMP or PNM files";
    DataError::content(place_of(path), problem, action)
}

fn too_many(folder: &Path) -> DataError {
    let problem = format!("holds images beyond the {MAX_FILES} that are listed at once");
    DataError::content(
        place_of(folder),
        problem,
        "name smaller folders one after another",
    )
}

/// Whether a name ends as that of an image does, read or not: a picture that cannot be read is to be told.
fn is_picture(name: &str) -> bool {
    is_image(name) || other_ending(name).is_some()
}

/// The text of a path that could be a pattern.
fn pattern_of(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.contains(['*', '?', '[']))
}

/// Whether a file starts as a zip, a gzip or a tar does.
fn is_archive(path: &Path) -> Result<bool, DataError> {
    let (file, _) = open_file(path)?;
    let mut start = Vec::new();
    file.take(262)
        .read_to_end(&mut start)
        .map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
    Ok(start.starts_with(b"PK\x03\x04")
        || start.starts_with(b"PK\x05\x06")
        || start.starts_with(&[0x1f, 0x8b])
        || start.get(257..262) == Some(b"ustar"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::four_ways;
    use sdlora_image::{Channels, TransformConfig, encode_png};

    fn png(level: u8) -> Vec<u8> {
        encode_png(2, 2, &[level; 12]).unwrap()
    }

    /// Names, and the first pixel of every image or its problem.
    fn read(inputs: &[PathBuf]) -> Vec<(String, Result<u8, String>)> {
        let list = Arc::new(ImageList::new(inputs.to_vec(), ImageReading::default()));
        let transform = TransformConfig::new(2, Channels::Gray).init().unwrap();
        let loader = list.loader(transform, 3).unwrap();
        let mut levels = Vec::new();
        for batch in loader.host_epoch(0) {
            let batch = batch.unwrap();
            let pixels = batch.pixels.chunks_exact(4);
            levels.extend(pixels.map(|pixels| (255.0 * pixels[0]).round() as u8));
        }
        assert_eq!(levels.len(), list.images().len());
        let images = list.images().iter().zip(levels).enumerate();
        images
            .map(|(position, (image, level))| {
                let read = match list.take_problem(position) {
                    None => Ok(level),
                    Some(problem) => Err(problem.to_string()),
                };
                assert!(list.take_problem(position).is_none());
                (image.full_path().display().to_string(), read)
            })
            .collect()
    }

    #[test]
    fn a_folder_and_its_archives_give_the_same_images_in_the_order_of_their_names() {
        let (a, b, c) = (png(10), png(20), png(30));
        let files: [(&str, &[u8]); 5] = [
            ("b/2.png", &b),
            ("a.png", &a),
            ("b/10.PNG", &c),
            ("b/notes.txt", b"x"),
            (".hidden.png", &a),
        ];
        let (_dir, paths) = four_ways(&files);
        for path in &paths {
            let found = read(std::slice::from_ref(path));
            let name = |name: &str| path.join(name).display().to_string();
            let expected = [("a.png", 10), ("b/10.PNG", 30), ("b/2.png", 20)];
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(member, level)| (name(member), Ok(level)))
                .collect();
            assert_eq!(found, expected);
            let list = ImageList::new([path.clone()], ImageReading::default());
            assert_eq!(list.n_others(), 1);
            assert_eq!(list.images()[0].member.is_some(), path.is_file());
        }
    }

    #[test]
    fn what_cannot_be_read_keeps_its_place_and_costs_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("empty")).unwrap();
        std::fs::create_dir_all(at("texts")).unwrap();
        std::fs::write(at("texts/1.txt"), "x").unwrap();
        std::fs::write(at("good.png"), png(50)).unwrap();
        std::fs::write(at("cut.png"), &png(50)[..20]).unwrap();
        std::fs::write(at("phone.heic"), "x").unwrap();
        std::fs::write(at("broken.zip"), b"PK\x03\x04 and no more").unwrap();
        let inputs = [
            "empty",
            "good.png",
            "texts",
            "none.png",
            "cut.png",
            "broken.zip",
            "n*.jpg",
            "good.png",
        ];
        let found = read(&inputs.map(at));
        let names: Vec<_> = found.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, inputs.map(|name| at(name).display().to_string()));
        let parts = [
            Some("holds no file"),
            None,
            Some("1 files have other endings"),
            Some("none.png"),
            Some("cut.png"),
            Some("broken.zip"),
            Some("matches no file"),
            None,
        ];
        for ((name, read), part) in found.iter().zip(parts) {
            match part {
                None => assert_eq!(*read, Ok(50), "{name}"),
                Some(part) => {
                    let problem = read.as_ref().unwrap_err();
                    assert!(problem.contains(part), "{name}: {problem}");
                }
            }
        }
        // A picture in a format that is not read is told, not left out.
        let found = read(&[dir.path().to_owned()]);
        let heic = found.iter().find(|(name, _)| name.ends_with("phone.heic"));
        assert!(heic.unwrap().1.is_err());
    }

    #[test]
    fn a_pattern_is_one_where_there_is_no_such_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("x/y")).unwrap();
        for (name, level) in [
            ("a1.png", 1),
            ("a2.png", 2),
            ("a[1].png", 3),
            ("x/y/a3.png", 4),
        ] {
            std::fs::write(at(name), png(level)).unwrap();
        }
        let levels = |pattern: &str| -> Vec<u8> {
            let found = read(&[at(pattern)]);
            found.into_iter().map(|(_, read)| read.unwrap()).collect()
        };
        assert_eq!(levels("a?.png"), [1, 2]);
        assert_eq!(levels("a[2-9].png"), [2]);
        assert_eq!(levels("a[1].png"), [3]);
        assert_eq!(levels("**/a3.png"), [4]);
        // A folder that matches is read as a whole.
        assert_eq!(levels("x*"), [4]);
    }

    #[test]
    fn names_that_an_archive_has_twice_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("twice.tar");
        let image = png(9);
        let files: [(&str, &[u8]); 2] = [("a.png", &image), ("A.png", &image)];
        std::fs::write(&path, crate::files::tests::tarred(&files)).unwrap();
        let found = read(&[path]);
        assert_eq!(found.len(), 1);
        let problem = found[0].1.as_ref().unwrap_err();
        assert!(problem.contains("a.png"), "{problem}");
    }

    #[cfg(unix)]
    #[test]
    fn names_outside_utf_8_and_loops_of_links_are_read_or_told() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let latin = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
        std::fs::write(dir.path().join(latin), png(7)).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("gone.png")).unwrap();
        let list = ImageList::new([dir.path().to_owned()], ImageReading::default());
        let paths: Vec<_> = list
            .images()
            .iter()
            .map(|image| image.path.clone())
            .collect();
        let names = [latin, "gone.png".as_ref(), "loop".as_ref()];
        assert_eq!(paths, names.map(|name| dir.path().join(name)));
        let found = read(&[dir.path().to_owned()]);
        assert_eq!(found[0].1, Ok(7));
        assert!(found[1].1.as_ref().unwrap_err().contains("gone.png"));
        assert!(found[2].1.as_ref().unwrap_err().contains("a folder above"));
    }
}
