// The recurrent kernels. rnn_tile.h: products; rnn_panels.h: how weights lie; rnn_team.h: threads; then the passes.
#include "rnn_tile.h"
#include "rnn_panels.h"
#include "rnn_team.h"
#include "rnn_fwd.h"
