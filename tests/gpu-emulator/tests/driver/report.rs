//! The call log and the counts, read back as a test of the runtime would.

use super::support::*;
use serde_json::Value;

/// Log entries between two marks.
fn between<'a>(report: &'a Value, from: &str, to: &str) -> Vec<&'a Value> {
    let log = report["log"].as_array().unwrap();
    let place = |mark: &str| log.iter().position(|entry| entry["mark"] == mark).unwrap();
    log[place(from) + 1..place(to)].iter().collect()
}

#[test]
fn waits_of_the_host_and_allocations_show_between_marks() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    let mut words = stream.clone_htod(&[0_u32; 32]).unwrap();
    // SAFETY: written by the copy before it is read.
    let mut pinned = unsafe { device.context.alloc_pinned::<u32>(32) }.unwrap();
    device.emulator.mark("step");
    kernels.affine(&stream, &mut words, 1, 1).unwrap();
    stream.memcpy_dtoh(&words, &mut pinned).unwrap();
    device.emulator.mark("end of step");
    stream.synchronize().unwrap();
    let host = stream.clone_dtoh(&words).unwrap();
    device.emulator.mark("end of test");
    assert_eq!(host, [1; 32]);

    let report = device.emulator.report();
    let step = between(&report, "step", "end of step");
    let launch = step.iter().find(|call| call["call"] == "cuLaunchKernel").unwrap();
    assert_eq!(launch["kernel"], "affine");
    assert_eq!(launch["block"], serde_json::json!([32, 1, 1]));
    assert!(launch["stream"].as_u64().unwrap() > 0);
    let copy = step.iter().find(|call| call["call"] == "cuMemcpyDtoHAsync_v2").unwrap();
    assert_eq!(copy["bytes"], 128);
    assert!(step.iter().all(|call| call.get("host_sync").is_none()), "{step:?}");
    assert!(step.iter().all(|call| !call["call"].as_str().unwrap().contains("Alloc")));

    let rest = between(&report, "end of step", "end of test");
    let waits: Vec<_> = rest.iter().filter(|call| call["host_sync"] == true).collect();
    assert!(waits.iter().any(|call| call["call"] == "cuStreamSynchronize"));
    let pageable = waits.iter().find(|call| call["call"] == "cuMemcpyDtoHAsync_v2").unwrap();
    assert_eq!(pageable["pageable"], true);
}

#[test]
fn a_kernels_counts_are_by_the_name_of_the_buffer() {
    use cudarc::driver::DevicePtr;
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    let source = stream.clone_htod(&[1.0_f32; 256]).unwrap();
    let mut result = stream.alloc_zeros::<f32>(256).unwrap();
    device.emulator.label(source.device_ptr(&stream).0, "source");
    device.emulator.label(result.device_ptr(&stream).0, "result");
    kernels.scale(&stream, &mut result, &source, 2.0).unwrap();
    stream.synchronize().unwrap();
    let report = device.emulator.report();
    let scale = &report["kernels"]["scale"];
    assert_eq!(scale["launches"], 1);
    // 256 floats are 32 sectors of 32 bytes.
    assert_eq!(scale["sectors_loaded"]["source"], 32);
    assert_eq!(scale["sectors_stored"]["result"], 32);
    assert_eq!(scale["ideal_load_sectors"], 32);
    assert!(scale["instructions"]["float"].as_u64().unwrap() > 0);
}

#[test]
fn the_report_is_written_when_the_process_ends() {
    const CHILD: &str = "report::the_report_is_written_when_the_process_ends";
    if std::env::var_os("FORERUN_EMULATOR_REPORT").is_some() {
        let device = device(&[]);
        let kernels = device.kernels();
        let stream = device.context.new_stream().unwrap();
        let mut words = stream.clone_htod(&[0_u32; 32]).unwrap();
        kernels.affine(&stream, &mut words, 1, 1).unwrap();
        stream.synchronize().unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD])
        .env("FORERUN_EMULATOR_REPORT", &path)
        .env("FORERUN_EMULATOR_SEED", "5")
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["kernels"]["affine"]["launches"], 1);
    assert_eq!(report["device"]["seed"], 5);
    assert_eq!(report["device"]["name"], "forerun emulated GPU (no hardware)");
}
