package offer

// Config is what the call was made with.
func (c *Call) Config() Config { return c.config }
