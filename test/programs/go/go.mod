module underpass.io/test/programs

go 1.19
