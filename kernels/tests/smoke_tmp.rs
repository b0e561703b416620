mod common;
use common::*;
use kron_kernels::*;
#[test]
fn fwd() {
    for case in CASES {
        let mut d = Data::<half::bf16>::new(case);
        let truth = d.oracle(); let plain = d.plain();
        let f = case.factors();
        let mut ws = vec![f32::NAN; workspace_len(f, Pass::Forward, case.rows).unwrap()];
        let on = Emulated::new();
        let plan = forward(&on, Forward{factors:f,scale:SCALE,dropout:case.drop(),theta:DeviceSlice::host(d.theta.as_slice()),x:d.x.rows(),y:d.y.rows_mut(),accumulate:case.accumulate,t:DeviceSliceMut::host(&mut d.t),workspace:DeviceSliceMut::host(&mut ws)}, StreamHandle::DEFAULT).unwrap();
        eprintln!("{}\n{plan}conflicts {}", case.why, on.bank_conflicts.get());
        let got = d.answer();
        close("t", &got.t,&plain.t,&truth.t,2.0);
        close("y", &got.y,&plain.y,&truth.y,2.0);
    }
}
