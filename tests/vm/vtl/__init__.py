"""A tape library that Debian's own kernel takes for a real one: drives, a changer, cartridges.

The kernel's target_core_user hands each SCSI command of a tape or a changer to a process here; its
tcm_loop makes /dev/nst*, /dev/sch* and /dev/sg* of them. So the kernel's st, ch and sg drivers are
driven as they are, and a test can let a drive fail in ways that no real one does when asked.

    with Library(Shape(drives=2, cartridges=("SM0001L8", "SM0002L8"))) as library:
        library.move(library.slots[0], library.bays[0])
        library.fault(0, read_error_at=5)

`python -m tests.vm.vtl --help` starts one by hand. Sources: SPC-4, SSC-3, SMC-3;
Documentation/target/tcmu-design.rst, linux/target_core_user.h.
"""
