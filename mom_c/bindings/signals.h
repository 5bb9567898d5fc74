/* Lets Ctrl-C and other signals end a long call of the core. */
#ifndef MOM_BINDINGS_SIGNALS_H
#define MOM_BINDINGS_SIGNALS_H

/* For mom_exec.stop. In the main thread it is a function that runs Python's handlers of pending signals, and says
 * whether one of them has raised an exception. The call then returns MOM_ERR_STOPPED, and the exception is set. Python
 * runs handlers in the main thread only, so for other threads this is NULL. */
int (*mom_stop_on_signals(void))(void);

/* Whether a function is called when this signal comes, one of Python's or of any other library. */
int mom_has_signal_handler(int number);

#endif
