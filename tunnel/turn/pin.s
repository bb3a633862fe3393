// Go accepts functions without a body (pin.go) only in a package that has an assembly file.
