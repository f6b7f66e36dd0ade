//! Plain files: complete and right, or not there at all.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{Reply, Server, Told, bytes, retry, sum};
use sdlora_fetch::{Downloader, Expected, FetchError, Mirror, Pace, Retry, Silent};
use tempfile::TempDir;

const N: usize = 100_000;

struct Target {
    _folder: TempDir,
    dest: PathBuf,
    part: PathBuf,
}

fn target() -> Target {
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("data/real.zip");
    let part = folder.path().join("data/real.zip.part");
    fs::create_dir_all(dest.parent().unwrap()).unwrap();
    Target {
        _folder: folder,
        dest,
        part,
    }
}

fn expected(content: &[u8]) -> Expected {
    Expected::new(content.len() as u64, &sum(content)).unwrap()
}

#[test]
fn a_file_arrives_whole_and_is_told_of_once() {
    let content = bytes(N);
    let (server, to) = (
        Server::start(|asked, _| Reply::ranged(asked, &bytes(N))),
        target(),
    );
    let url = format!("{}/real.zip", server.url);
    let mut told = Told::default();
    let downloader = Downloader::new(retry(1));
    downloader
        .fetch(&url, &to.dest, &expected(&content), &mut told)
        .unwrap();
    assert_eq!(fs::read(&to.dest).unwrap(), content);
    assert!(!to.part.exists());
    assert_eq!(told.started, [("real.zip".to_owned(), Some(N as u64))]);
    assert_eq!((told.n_bytes, told.n_done), (N as u64, 1));

    // It is there and right: nothing is asked again.
    downloader
        .fetch(&url, &to.dest, &expected(&content), &mut Silent)
        .unwrap();
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let content = bytes(N);
    let server = Server::start(|asked, n| {
        let reply = Reply::ranged(asked, &bytes(N)).with("etag", "\"v1\"");
        if n < 2 { reply.cut(30_000) } else { reply }
    });
    let (to, mut told) = (target(), Told::default());
    // One attempt without progress would end it; two breaks with progress do not.
    Downloader::new(retry(2))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&content),
            &mut told,
        )
        .unwrap();
    assert_eq!(fs::read(&to.dest).unwrap(), content);
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].range(), None);
    assert_eq!(asked[1].range(), Some(30_000));
    assert_eq!(asked[1].header("if-range"), Some("\"v1\""));
    assert_eq!(asked[2].range(), Some(60_000));
    assert_eq!(told.n_bytes, N as u64);
}

#[test]
fn the_next_command_continues_what_the_last_one_left() {
    let content = bytes(N);
    let server = Server::start(|asked, n| match n {
        0 => Reply::ranged(asked, &bytes(N)).cut(40_000),
        1 => Reply::new(503),
        _ => Reply::ranged(asked, &bytes(N)),
    });
    let (to, url) = (target(), format!("{}/f", server.url));
    let downloader = Downloader::new(retry(1));
    let error = downloader
        .fetch(&url, &to.dest, &expected(&content), &mut Silent)
        .unwrap_err();
    assert!(matches!(error, FetchError::Connection { .. }), "{error}");
    assert!(!to.dest.exists());
    assert_eq!(fs::metadata(&to.part).unwrap().len(), 40_000);
    assert!(
        downloader
            .fetch(&url, &to.dest, &expected(&content), &mut Silent)
            .is_err()
    );
    downloader
        .fetch(&url, &to.dest, &expected(&content), &mut Silent)
        .unwrap();
    assert_eq!(server.asked()[2].range(), Some(40_000));
    assert_eq!(fs::read(&to.dest).unwrap(), content);
}

#[test]
fn a_server_without_ranges_or_with_a_new_version_begins_anew() {
    let content = bytes(N);
    // Ignores the range.
    let server = Server::start(|_, n| {
        let reply = Reply::ok(bytes(N));
        if n == 0 { reply.cut(30_000) } else { reply }
    });
    let to = target();
    Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&content),
            &mut Silent,
        )
        .unwrap();
    assert_eq!(fs::read(&to.dest).unwrap(), content);

    // Honours the range, but of another version: the ETag says so.
    let server = Server::start(|asked, n| match n {
        0 => Reply::ok(vec![9; N]).with("etag", "\"old\"").cut(30_000),
        _ => Reply::ranged(asked, &bytes(N)).with("etag", "\"new\""),
    });
    let to = target();
    Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&content),
            &mut Silent,
        )
        .unwrap();
    assert_eq!(fs::read(&to.dest).unwrap(), content);
}

#[test]
fn leftovers_of_another_version_are_thrown_away() {
    let content = bytes(N);
    let server = Server::start(|asked, _| Reply::ranged(asked, &bytes(N)));
    for left in [vec![9; 500], vec![9; N], vec![9; N + 5]] {
        let to = target();
        fs::write(&to.part, &left).unwrap();
        Downloader::new(retry(2))
            .fetch(
                &format!("{}/f", server.url),
                &to.dest,
                &expected(&content),
                &mut Silent,
            )
            .unwrap();
        assert_eq!(fs::read(&to.dest).unwrap(), content, "{} left", left.len());
    }
}

#[test]
fn a_wrong_checksum_names_both_sums_and_leaves_nothing() {
    let (content, wrong) = (bytes(N), vec![1; N]);
    let sent = wrong.clone();
    let server = Server::start(move |_, _| Reply::ok(sent.clone()));
    let to = target();
    fs::write(&to.dest, "an older file").unwrap();
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f?sig=secret", server.url),
            &to.dest,
            &expected(&content),
            &mut Silent,
        )
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&sum(&content)) && error.contains(&sum(&wrong)),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
    assert!(!to.part.exists());
    assert_eq!(fs::read(&to.dest).unwrap(), b"an older file");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_server_that_lies_about_the_length_fills_no_disk() {
    let content = bytes(N);
    // Endless in effect, and does not say so.
    let server = Server::start(|_, _| Reply::ok(vec![7; 50 * N]).chunked());
    let (to, mut told) = (target(), Told::default());
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&content),
            &mut told,
        )
        .unwrap_err();
    assert!(
        matches!(
            error,
            FetchError::Size {
                expected: 100_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(told.n_bytes <= N as u64 && !to.part.exists() && !to.dest.exists());

    // Says that it is another size.
    let server = Server::start(|_, _| Reply::ok(vec![7; N - 1]));
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&content),
            &mut Silent,
        )
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Size { found: 99_999, .. }),
        "{error}"
    );

    // Promises more than it ever sends.
    let server = Server::start(|asked, _| Reply::ranged(asked, &bytes(N)).cut(0));
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&content),
            &mut Silent,
        )
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Connection { n_attempts: 3, .. }),
        "{error}"
    );
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn a_server_that_always_begins_anew_and_breaks_is_given_up() {
    let server = Server::start(|_, _| Reply::ok(bytes(N)).cut(10_000));
    let to = target();
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&bytes(N)),
            &mut Silent,
        )
        .unwrap_err();
    assert!(matches!(error, FetchError::Connection { .. }), "{error}");
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn a_missing_file_is_not_asked_for_twice() {
    let server = Server::start(|_, _| Reply::new(404));
    let to = target();
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&bytes(N)),
            &mut Silent,
        )
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Status { status: 404, .. }),
        "{error}"
    );
    assert_eq!(server.asked().len(), 1);
    assert!(!to.part.exists());
}

#[test]
fn a_refusal_in_the_middle_keeps_what_came() {
    let server = Server::start(|asked, n| match n {
        0 => Reply::ranged(asked, &bytes(N)).cut(40_000),
        _ => Reply::new(403),
    });
    let to = target();
    let error = Downloader::new(retry(3))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&bytes(N)),
            &mut Silent,
        )
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Status { status: 403, .. }),
        "{error}"
    );
    assert_eq!(fs::metadata(&to.part).unwrap().len(), 40_000);
}

#[test]
fn a_mirror_takes_the_place_of_the_address() {
    let content = bytes(N);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("real.zip"), &content).unwrap();
    fs::write(folder.path().join("long.zip"), bytes(N + 1)).unwrap();
    let server = Server::start(|asked, _| Reply::ranged(asked, &bytes(N)));
    for mirror in [
        folder.path().to_str().unwrap(),
        &format!("{}/m/", server.url),
    ] {
        let to = target();
        let downloader = Downloader::new(retry(1)).with_mirror(Mirror::parse(mirror));
        let mut told = Told::default();
        // Nothing answers at this address.
        downloader
            .fetch(
                "http://127.0.0.1:1/x/real.zip?a=b",
                &to.dest,
                &expected(&content),
                &mut told,
            )
            .unwrap();
        assert_eq!(fs::read(&to.dest).unwrap(), content, "{mirror}");
        assert_eq!((told.n_bytes, told.n_done), (N as u64, 1));
    }
    assert_eq!(server.asked()[0].path, "/m/real.zip");

    let to = target();
    let downloader =
        Downloader::new(retry(1)).with_mirror(Mirror::parse(folder.path().to_str().unwrap()));
    let error = downloader
        .fetch(
            "http://127.0.0.1:1/long.zip",
            &to.dest,
            &expected(&content),
            &mut Silent,
        )
        .unwrap_err();
    assert!(matches!(error, FetchError::Size { .. }), "{error}");
    assert!(!to.dest.exists() && !to.part.exists());
}

#[test]
fn two_at_once_bring_one_file() {
    let server = Server::start(|asked, _| Reply::ranged(asked, &bytes(N)));
    let (to, url) = (target(), format!("{}/f", server.url));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                Downloader::new(retry(2))
                    .fetch(&url, &to.dest, &expected(&bytes(N)), &mut Silent)
                    .unwrap();
            });
        }
    });
    assert_eq!(fs::read(&to.dest).unwrap(), bytes(N));
}

#[test]
fn an_md5_is_compared_where_it_is_all_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("abc.bin"), "abc").unwrap();
    let downloader =
        Downloader::new(retry(1)).with_mirror(Mirror::parse(folder.path().to_str().unwrap()));
    let fetch = |expected: &Expected| {
        let to = target();
        let result = downloader.fetch("http://a.example/abc.bin", &to.dest, expected, &mut Silent);
        (result, to.dest.exists(), to)
    };
    // RFC 1321, test suite.
    let right = Expected::unknown()
        .with_md5("900150983CD24FB0D6963F7D28E17F72")
        .unwrap();
    let (result, is_there, _to) = fetch(&right);
    result.unwrap();
    assert!(is_there);
    let wrong = Expected::unknown()
        .with_md5("f96b697d7cb7938d525a2f31aaf161d0")
        .unwrap();
    let (result, is_there, to) = fetch(&wrong);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("MD5 9001"), "{error}");
    assert!(!is_there && !to.part.exists());
    // A SHA-256 goes before it.
    let both = right.with_sha256(&sum(b"abd")).unwrap();
    assert!(fetch(&both).0.unwrap_err().to_string().contains("SHA-256"));
    assert!(Expected::unknown().with_md5("9001").is_err());
}

#[test]
fn of_an_unknown_file_all_that_the_server_announced_must_come() {
    let server = Server::start(|asked, n| match n {
        0 => Reply::ranged(asked, &bytes(N)).cut(40_000),
        _ => Reply::ranged(asked, &bytes(N)),
    });
    let (to, url) = (target(), format!("{}/f", server.url));
    let downloader = Downloader::new(retry(2));
    let expected = Expected::unknown();
    downloader
        .fetch(&url, &to.dest, &expected, &mut Silent)
        .unwrap();
    assert_eq!(fs::read(&to.dest).unwrap(), bytes(N));
    let n_asked = server.asked().len();
    assert_eq!(n_asked, 2);
    // What is there is kept.
    downloader
        .fetch(&url, &to.dest, &expected, &mut Silent)
        .unwrap();
    assert_eq!(server.asked().len(), n_asked);
}

/// A server that is slow in a way, and what is told before it is given up.
fn given_up(answer: impl Fn(&common::Asked, usize) -> Reply + Send + 'static) -> Vec<String> {
    let (server, to, mut told) = (Server::start(answer), target(), Told::default());
    let retry = Retry {
        pace: Pace {
            silence: Duration::from_millis(300),
            window: Duration::from_millis(500),
            least: 1000,
        },
        ..retry(3)
    };
    let error = Downloader::new(retry)
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&bytes(N)),
            &mut told,
        )
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Connection { n_attempts: 3, .. }),
        "{error}"
    );
    assert!(!to.dest.exists());
    told.troubles
}

#[test]
fn a_server_that_drips_is_given_up_and_told_of() {
    // Each attempt brings new bytes, so by the rule for broken connections it would never end.
    let drip =
        |asked: &common::Asked, _| Reply::ranged(asked, &bytes(N)).drip(Duration::from_millis(20));
    let told = given_up(drip);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("only ") && told[0].ends_with("attempt 2 of 3"),
        "{told:?}"
    );
    // Nor does it help to break before every window ends.
    let told = given_up(move |asked, n| drip(asked, n).cut(9));
    assert!(
        told.iter().any(|words| words.starts_with("only ")),
        "{told:?}"
    );
}

#[test]
fn a_silent_server_is_given_up_and_told_of() {
    let told = given_up(|asked, _| Reply::ranged(asked, &bytes(N)).drip(Duration::from_secs(2)));
    assert_eq!(
        told,
        [
            "nothing came for 300ms: attempt 2 of 3",
            "nothing came for 300ms: attempt 3 of 3"
        ]
    );
}

#[cfg(unix)]
#[test]
fn a_link_under_the_temporary_name_is_not_followed() {
    let server = Server::start(|asked, _| Reply::ranged(asked, &bytes(N)));
    let to = target();
    let own = to.part.with_file_name("thesis.txt");
    fs::write(&own, "years of work").unwrap();
    std::os::unix::fs::symlink(&own, &to.part).unwrap();
    Downloader::new(retry(1))
        .fetch(
            &format!("{}/f", server.url),
            &to.dest,
            &expected(&bytes(N)),
            &mut Silent,
        )
        .unwrap();
    assert_eq!(fs::read_to_string(&own).unwrap(), "years of work");
    assert_eq!(fs::read(&to.dest).unwrap(), bytes(N));
    assert!(!fs::symlink_metadata(&to.dest).unwrap().is_symlink());
}
