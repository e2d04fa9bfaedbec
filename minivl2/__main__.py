from minivl2.cli import main

raise SystemExit(main())
