//! A user's files: nothing is lost.
#![cfg(feature = "full")]

#[path = "common/convert.rs"]
mod convert;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use convert::{
    Folder, QUICK, bytes, chunk, contents, encode, fails, format, model, ok, riff, run, s16, said, samples, sound,
    undertone, wait_until, wav,
};
use undertone::bitstream::Tail;

#[test]
fn an_output_is_never_an_input_and_never_replaces_another_kind_of_file() {
    let dir = Folder::new();
    let (a, b) = (dir.write("a.wav", &wav(&sound(0.5))), dir.write("b.wav", &wav(&sound(0.3))));
    let (utn, other) = (dir.path("a.utn"), dir.path("b.utn"));
    encode(&a, &utn);
    encode(&b, &other);
    fs::hard_link(&a, dir.path("hard.wav")).unwrap();
    std::os::unix::fs::symlink("a.wav", dir.path("soft.wav")).unwrap();
    std::os::unix::fs::symlink("a.utn", dir.path("soft.utn")).unwrap();
    let (hard, soft, soft_utn) = (dir.path("hard.wav"), dir.path("soft.wav"), dir.path("soft.utn"));
    let before: Vec<_> = [&a, &b, &utn, &other].map(|p| fs::read(p).unwrap()).into();
    for (args, why) in [
        (["encode", &a, &a], "also the input"),
        (["encode", &a, &hard], "also the input"),
        (["encode", &a, &soft], "also the input"),
        (["decode", &utn, &utn], "also the input"),
        (["decode", &utn, &soft_utn], "also the input"),
        // As from encode *.wav.
        (["encode", &a, &b], "recording"),
        (["decode", &utn, &other], "codes"),
    ] {
        let e = fails(&args);
        assert!(e.contains(why), "{args:?}: {e}");
        let forced = run(&[&args[..], &["--force"]].concat());
        assert!(!forced.status.success() || why != "also the input", "{args:?}");
        fs::write(&b, &before[1]).unwrap();
        fs::write(&other, &before[3]).unwrap();
    }
    let e = fails(&["generate", "--prompt", &a, &a, "--seconds", "0.1"]);
    assert!(e.contains("also the input"), "{e}");
    let packets = dir.path("packets");
    ok(&["message", &b, &packets, "--packed"]);
    let packet = format!("{packets}/000000.utp");
    let e = fails(&["message", &packets, &packet, "--force"]);
    assert!(e.contains("also the input"), "{e}");
    fs::copy(&a, format!("{packets}/sound.utp")).unwrap();
    let e = fails(&["message", &format!("{packets}/sound.utp"), &packets, "--force"]);
    assert!(e.contains("also the input"), "{e}");
    let redirected = undertone(&["encode", "-", &a]).stdin(File::open(&a).unwrap()).output().unwrap();
    assert!(said(&redirected).contains("also the input"), "{}", said(&redirected));
    let after: Vec<_> = [&a, &b, &utn, &other].map(|p| fs::read(p).unwrap()).into();
    assert!(before == after, "nothing was changed");
    assert!(dir.names().iter().all(|n| !n.ends_with(".part")), "{:?}", dir.names());
}

#[test]
fn a_run_that_fails_leaves_what_was_there_and_one_that_does_not_replaces_it_whole() {
    let dir = Folder::new();
    let good = dir.write("good.wav", &wav(&sound(0.5)));
    let before = fs::read(&good).unwrap();
    let (garbage, utn) = (dir.write("garbage.utn", &[0x5a; 4_000]), dir.path("a.utn"));
    encode(&good, &utn);
    let mut damaged = fs::read(&utn).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let damaged = dir.write("damaged.utn", &damaged);
    for args in [
        &["decode", &garbage, &good][..],
        &["decode", &damaged, &good],
        &["decode", "/nonexistent", &good],
        &["listen", &good, "--from", "127.0.0.1:1"],
        &["generate", "--prompt", &garbage, &good],
        &["encode", &garbage, &dir.path("new.utn")],
        &["decode", &garbage, &dir.path("new.wav")],
    ] {
        fails(args);
        assert!(fs::read(&good).unwrap() == before, "{args:?}");
    }
    assert_eq!(dir.names(), ["a.utn", "damaged.utn", "garbage.utn", "good.wav"]);
    ok(&["decode", &utn, &good]);
    assert_eq!(samples(&good).len(), 12_000);
    assert_eq!(dir.names().len(), 4, "no part is left: {:?}", dir.names());
}

#[test]
fn a_live_pipe_into_a_file_loses_nothing_to_a_signal() {
    let dir = Folder::new();
    let raw = bytes(&s16(&sound(2.0)));
    for signal in ["INT", "TERM", "HUP", "KILL"] {
        let utn = dir.path(&format!("{signal}.utn"));
        let args = [&["encode", "--raw", "s16le:24000:1", "-", &utn], QUICK].concat();
        let mut child = undertone(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        to.write_all(&raw).unwrap();
        // 19 bundles of 5 frames can be encoded before more comes; each is in the file as soon as it is.
        let whole = || fs::metadata(&utn).is_ok_and(|m| m.len() >= 23 + 19 * 22);
        wait_until("the bundles are in the file", whole);
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = child.wait().unwrap();
        let (frames, total, tail) = contents(&utn);
        if signal == "KILL" {
            assert!(frames >= 95, "{frames} frames");
        } else {
            assert!(status.success(), "{signal}: {status}");
            assert_eq!((frames, total, tail), (101, Some(48_000), Tail::Complete), "{signal}");
        }
        ok(&["decode", &utn, &dir.path("out.wav")]);
    }
}

#[test]
fn an_interrupted_conversion_keeps_what_is_done_and_what_was_there() {
    let dir = Folder::new();
    let long = dir.write("long.wav", &wav(&sound(50.0)));
    let utn = dir.path("long.utn");
    encode(&long, &utn);
    for there in [false, true] {
        let out = dir.path("out.wav");
        if there {
            dir.write("out.wav", &wav(&sound(0.1)));
        }
        let before = fs::read(&out).ok();
        // A pipe that stays open, so that the decoder is in the middle whenever the signal comes.
        let mut child = undertone(&["decode", &utn, &out]).stderr(Stdio::piped()).spawn().unwrap();
        let begun = || dir.names().iter().any(|n| n.starts_with("out.wav") && (!there || n.ends_with(".part")));
        wait_until("the decoder writes", begun);
        Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        let status = child.wait().unwrap();
        if status.success() {
            // It was faster than the signal.
            fs::remove_file(&out).unwrap();
            continue;
        }
        assert!(error.contains("interrupted"), "{error}");
        let kept = match there {
            true => dir.names().into_iter().find(|n| n.ends_with(".part")).map(|n| dir.path(&n)).unwrap(),
            false => out.clone(),
        };
        assert!(!samples(&kept).is_empty());
        assert!(!there || fs::read(&out).ok() == before);
        fs::remove_file(&kept).unwrap();
    }
}

#[test]
fn pipes_by_any_name_work_as_the_standard_ones() {
    let dir = Folder::new();
    let (wave, utn, back) = (dir.write("a.wav", &wav(&sound(1.0))), dir.path("a.utn"), dir.path("back.wav"));
    encode(&wave, &utn);
    ok(&["decode", &utn, &back]);
    let pipe = run(&["decode", &utn, "-"]).stdout;
    // As long as the file, and as good.
    assert_eq!((pipe.len() - 44, &pipe[..4]), (fs::read(&back).unwrap().len() - 80, &b"RIFF"[..]));
    assert!(pipe[44..] == fs::read(&back).unwrap()[80..]);
    assert!(run(&["decode", &utn, "/dev/stdout"]).stdout == pipe);
    // A named pipe, in and out.
    let (into, out) = (dir.fifo("in"), dir.fifo("out"));
    let reader = std::thread::spawn({
        let out = out.clone();
        move || fs::read(out).unwrap()
    });
    let codes = fs::read(&utn).unwrap();
    let writer = std::thread::spawn({
        let into = into.clone();
        move || fs::write(into, codes).unwrap()
    });
    ok(&["decode", &into, &out]);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == pipe);
    let writer = std::thread::spawn({
        let (into, wave) = (into.clone(), fs::read(&wave).unwrap());
        move || fs::write(into, wave).unwrap()
    });
    let piped = dir.path("piped.utn");
    encode(&into, &piped);
    writer.join().unwrap();
    assert_eq!(contents(&piped).0, contents(&utn).0);
}

#[test]
fn small_faults_of_the_command_line_stay_mended() {
    use undertone::bitstream::{Bundle, ContainerWriter, StreamHeader};
    use undertone::model::Manifest;
    use undertone::units::StageCount;
    let dir = Folder::new();
    let utn = dir.path("a.utn");
    encode(&dir.write("a.wav", &wav(&sound(1.0))), &utn);
    // Nobody reads.
    for args in [&["model", "info"][..], &["--help"]] {
        let mut child = undertone(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success() && !said(&out).contains("panicked"), "{args:?}: {}", said(&out));
    }
    let e = fails(&["decode", &utn, &dir.path("past.wav"), "--start", "5"]);
    assert!(e.contains("past the end") && e.contains("1.00 s"), "{e}");
    assert!(!Path::new(&dir.path("past.wav")).exists());
    for args in
        [&["encode", "/nonexistent.wav", &dir.path("x.utn")][..], &["decode", "/nonexistent.utn", &dir.path("x.wav")]]
    {
        let e = fails(args);
        assert_eq!(e.matches("No such file").count(), 1, "{e}");
    }
    // A frame number from nowhere asks for no memory and no hours of silence.
    let manifest = Manifest::parse(&fs::read(model().join("manifest.toml")).unwrap()).unwrap();
    let stages = StageCount::new(3).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ContainerWriter::new(StreamHeader::packed(&manifest.profile(), stages, 5), &mut bytes);
    for first in [1 << 40, (1 << 40) + 5, (1 << 50)] {
        writer.write(&Bundle::new(first, 5, stages, vec![1; 15]).unwrap(), &mut bytes).unwrap();
    }
    writer.finish(None, &mut bytes);
    let far = dir.write("far.utn", &bytes);
    ok(&["decode", &far, &dir.path("far.wav"), "--loss", "uniform:0", "--loss-seed", "3"]);
    assert!(samples(&dir.path("far.wav")).len() <= 15 * 480);
}

#[test]
fn every_file_of_a_model_folder_is_checked_where_it_is_loaded() {
    let dir = Folder::new();
    let copy = |name: &str| {
        let folder = dir.0.path().join(name);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(model()).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder.to_string_lossy().into_owned()
    };
    let wave = dir.write("a.wav", &wav(&sound(0.3)));
    let folder = copy("model");
    ok(&["model", "verify", &folder]);
    for name in [
        "tokens.safetensors",
        "draft.safetensors",
        "gradient.onnx",
        "encoder-int8.onnx",
        "decoder-frame.onnx",
        "encoder.onnx",
    ] {
        let path = Path::new(&folder).join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let at = flipped.len() * 2 / 3;
        flipped[at] ^= 0x10;
        fs::write(&path, flipped).unwrap();
        let e = fails(&["model", "verify", &folder]);
        assert!(e.contains(name) && e.contains("SHA-256"), "{e}");
        if name == "tokens.safetensors" || name == "gradient.onnx" {
            let e = fails(&["encode", &wave, &dir.path("x.utn"), "--model", &folder]);
            assert!(e.contains(name) && !Path::new(&dir.path("x.utn")).exists(), "{e}");
        }
        fs::write(&path, whole).unwrap();
    }
    fs::write(Path::new(&folder).join("more.onnx"), "from elsewhere").unwrap();
    let e = fails(&["model", "verify", &folder]);
    assert!(e.contains("more.onnx"), "{e}");
    fs::remove_file(Path::new(&folder).join("files.toml")).unwrap();
    let words = ok(&[&["encode", &wave, &dir.path("y.utn"), "--model", &folder], QUICK].concat());
    assert!(words.contains("files.toml") && words.lines().count() == 1, "{words}");
}

#[test]
fn a_recording_of_whole_seconds_is_encoded_to_its_end() {
    // Its last piece has no frame of its own: nothing is asked of the networks then.
    let folder = Folder::new();
    let wav = folder.write(
        "whole.wav",
        &riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), chunk(b"data", &bytes(&s16(&sound(10.0))))]),
    );
    ok(&["encode", &wav, &folder.path("whole.utn"), "--kbps", "3", "--refine", "0", "--beam", "1"]);
    ok(&["decode", &folder.path("whole.utn"), &folder.path("back.wav")]);
    assert_eq!(fs::metadata(folder.path("back.wav")).unwrap().len(), 80 + 2 * 240_000);
}
