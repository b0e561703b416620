//! The suite on the CUDA backend: on the kernels' emulation, and on a GPU where there is one.

#[cfg(feature = "emulate")]
mod emulated {
    use half::{bf16, f16};
    use kron_core::{Accum, Backend, Error, Forward, KronOp, KronShape, LayerDims, Pass, Scale, Split};
    use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, Emulated, Rows, RowsMut};
    use kron_tests::cases::{self, Case};
    use kron_tests::suite;

    fn engine() -> Cuda<Emulated> {
        Cuda::with(Emulated::new())
    }

    /// With plans of few blocks, each of which walks far: every stage of every pipeline is filled again.
    fn far() -> Cuda<Emulated> {
        Cuda::with(Emulated { blocks: 1, ..Emulated::new() })
    }

    /// Every case; an emulated thread takes thousands of times as long as a GPU's, so the tallest have fewer rows.
    fn shortened(limit: usize) -> Vec<Case> {
        let mut cases = cases::all();
        cases
            .iter_mut()
            .flat_map(|case| &mut case.rows)
            .filter(|rows| **rows > limit)
            .for_each(|rows| *rows = 300);
        cases
    }

    #[test]
    fn f32_agrees_with_the_oracle() {
        suite::agrees_with_the_oracle::<f32>(&[engine()], &shortened(3000));
    }

    #[test]
    fn f16_agrees_with_the_oracle() {
        suite::agrees_with_the_oracle::<f16>(&[engine()], &shortened(1000));
    }

    #[test]
    fn bf16_agrees_with_the_oracle() {
        suite::agrees_with_the_oracle::<bf16>(&[engine()], &shortened(1000));
    }

    /// On tensor cores, at one rank of each kind of tile; the kernels' own suite has all of them.
    #[test]
    fn cases_agree_where_each_block_walks_far() {
        suite::agrees_with_the_oracle::<bf16>(&[far()], &[cases::case_by_name("whole-rank-8")]);
        suite::agrees_with_the_oracle::<f16>(&[far()], &[cases::case_by_name("whole-rank-64")]);
    }

    #[test]
    fn merge_agrees_with_the_oracle() {
        suite::merge_agrees_with_the_oracle::<f32>(&engine(), &cases::all());
        suite::merge_agrees_with_the_oracle::<f16>(&engine(), &cases::all());
        suite::merge_agrees_with_the_oracle::<bf16>(&engine(), &cases::all());
    }

    #[test]
    fn zero_rows_change_nothing() {
        suite::zero_rows_change_nothing(&engine());
    }

    /// The kernels' own refusals come through as this library's errors, before anything is written.
    #[test]
    fn what_does_not_fit_is_refused() {
        let attempt = |shape: KronShape, t_len: usize| {
            let op = KronOp::new(shape, Scale::new(1.0).expect("finite"));
            let (mut y, mut t) = (vec![1.0f32; 6], vec![1.0f32; t_len]);
            let (theta, x) = (vec![1.0; 16], [1.0f32; 4]);
            let mut workspace = vec![0.0; engine().workspace_len(&op, Pass::Forward, 1)];
            let params = shape.params().min(theta.len());
            let call = Forward {
                theta: DeviceSlice::host(&theta[..params]),
                x: Rows { data: DeviceSlice::host(&x), rows: 1, stride: shape.d_in() },
                y: RowsMut { data: DeviceSliceMut::host(&mut y), rows: 1, stride: shape.d_out() },
                accum: Accum::Replace,
                t: DeviceSliceMut::host(&mut t),
                workspace: DeviceSliceMut::host(&mut workspace),
                dropout: None,
            };
            let result = engine().forward(&op, call);
            assert!(result.is_ok() || (y, t) == (vec![1.0; 6], vec![1.0; t_len]), "a refused call wrote");
            result
        };
        let small =
            KronShape::kron(LayerDims { d_out: 6, d_in: 4 }, Split { a_out: 3, a_in: 2 }, 1).expect("legal");
        attempt(small, 2).expect("fits");
        let error = attempt(small, 1).expect_err("T has two numbers");
        assert!(matches!(error, Error::Buffer { what: "t", .. }), "{error}");
        // Legal here, but more than the kernels' 32-bit indices reach.
        let large = KronShape::kron(LayerDims { d_out: 6, d_in: 1 << 33 }, Split { a_out: 3, a_in: 2 }, 1)
            .expect("legal");
        let error = attempt(large, 2).expect_err("2³² columns of C");
        assert!(matches!(error, Error::Shape(_)), "{error}");
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use half::{bf16, f16};
    use kron_core::Element;
    use kron_kernels::Cuda;
    use kron_kernels::Gpu;
    use kron_tests::cases::{self, Case};
    use kron_tests::notice::notice;
    use kron_tests::suite;

    /// Set to rehearse the suite where a launch takes a second: few cases of few rows, with the GPU's own plans.
    const REHEARSAL: &str = "KRON_REHEARSAL";

    fn rehearsed() -> bool {
        std::env::var_os(REHEARSAL).is_some()
    }

    /// The GPU, with its own plans and with plans of few blocks, which walk far enough to fill every
    /// stage of a pipeline again; or a line on standard error that says why there is none.
    fn engines() -> Option<Vec<Cuda<Gpu>>> {
        let gpu = || Gpu::new(0).inspect_err(|e| notice(format_args!("skipped: {e}"))).ok();
        let own = Cuda::with(gpu()?);
        Some(if rehearsed() { vec![own] } else { vec![own, Cuda::with(gpu()?.aimed_at(1))] })
    }

    /// Every case. The oracle on the host takes most of the time, so the tallest has fewer rows: the whole
    /// suite takes two minutes at most.
    fn all() -> Vec<Case> {
        shortened(cases::all(), 5000, 3000)
    }

    /// Cases with another number of rows where one has more than `most`.
    fn shortened(cases: Vec<Case>, most: usize, instead: usize) -> Vec<Case> {
        let mut cases = if rehearsed() { cases.into_iter().step_by(9).collect() } else { cases };
        let (most, instead) = if rehearsed() { (17, 17) } else { (most, instead) };
        let rows = cases.iter_mut().flat_map(|case| &mut case.rows);
        rows.filter(|rows| **rows > most).for_each(|rows| *rows = instead);
        cases.iter_mut().for_each(|case| case.rows.dedup());
        cases
    }

    fn agrees<E: Element>() {
        let Some(on) = engines() else { return };
        suite::agrees_with_the_oracle::<E>(&on, &all());
    }

    #[test]
    fn gpu_agrees_with_the_oracle_in_f32() {
        agrees::<f32>();
    }

    #[test]
    fn gpu_agrees_with_the_oracle_in_f16() {
        agrees::<f16>();
    }

    #[test]
    fn gpu_agrees_with_the_oracle_in_bf16() {
        agrees::<bf16>();
    }

    #[test]
    fn gpu_merge_agrees_with_the_oracle() {
        let Some(on) = engines() else { return };
        suite::merge_agrees_with_the_oracle::<f32>(&on[0], &all());
        suite::merge_agrees_with_the_oracle::<f16>(&on[0], &all());
        suite::merge_agrees_with_the_oracle::<bf16>(&on[0], &all());
    }

    /// Every kernel in every dtype on few problems: what a sanitizer can watch in minutes.
    #[test]
    fn gpu_few_cases_agree_with_the_oracle() {
        let Some(on) = engines() else { return };
        let few = shortened(cases::few(), usize::MAX, 0);
        suite::agrees_with_the_oracle::<f32>(&on, &few);
        suite::agrees_with_the_oracle::<f16>(&on, &few);
        suite::agrees_with_the_oracle::<bf16>(&on, &few);
        suite::merge_agrees_with_the_oracle::<f32>(&on[0], &few);
        suite::merge_agrees_with_the_oracle::<f16>(&on[0], &few);
        suite::merge_agrees_with_the_oracle::<bf16>(&on[0], &few);
    }

    #[test]
    fn gpu_repeats_itself_to_the_bit() {
        let Some(engines) = engines() else { return };
        for on in engines {
            suite::three_runs_have_the_same_bits::<f32>(&on, &all());
            suite::three_runs_have_the_same_bits::<f16>(&on, &all());
            suite::three_runs_have_the_same_bits::<bf16>(&on, &all());
        }
    }

    #[test]
    fn gpu_changes_nothing_over_zero_rows() {
        let Some(on) = engines() else { return };
        suite::zero_rows_change_nothing(&on[0]);
    }

    /// No driver, or a device that is not there: an error that says so, and no panic.
    #[test]
    fn a_missing_device_is_an_error() {
        let message = Cuda::new(1 << 20).expect_err("no machine has so many").to_string();
        assert!(["driver", "does not exist"].iter().any(|word| message.contains(word)), "{message}");
    }
}
